"""One model a family of timm, torchvision and transformers, small or of random weights."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.gradients.oracle import randomise
from tests.suites.configurations import small
from tests.suites.entry import Case, Entry, seed
from tests.suites.oracle import logits_of

#: The case's name, the model and its batch.
Made = tuple[str, nn.Module, Tensor]
#: Parameters of the largest model that runs.
MOST = 60_000_000
SAMPLES = 2
SECONDS = 900
#: Sides of pictures, the first that a model takes.
SIDES = (64, 96, 128, 160, 192, 224, 256, 288, 384)
#: Words in names from small to large.
SIZES = (
    *("test", "zepto", "atto", "femto", "pico", "nano", "n", "tiny", "ti", "xxs", "xs", "xxt"),
    *("mini", "xt", "t", "small", "s", "lite", "little", "medium", "m", "base", "b"),
)


def _entry(package: str, name: str, build: Callable[[], Iterator[Made]]) -> Entry:
    def cases() -> Iterator[Case]:
        seed(0)
        for case, model, x in build():
            count = sum(p.numel() for p in model.parameters())
            if count > MOST:
                raise ValueError(f"{count / 1e6:.0f} M parameters in the smallest of the family")
            yield _cased(case, randomise(model).eval(), x)

    return Entry(package, name, cases, seconds=SECONDS)


def _cased(name: str, model: nn.Module, x: Tensor) -> Case:
    """In float64, or in float32 where that does not run or has other than finite logits."""
    wide = x.double() if x.is_floating_point() else x
    try:
        with torch.no_grad():
            fits = bool(logits_of(copy.deepcopy(model).double()(wide)).isfinite().all())
    except (RuntimeError, TypeError):
        fits = False
    return Case(name, model.double(), wide) if fits else Case(f"{name} float32".strip(), model, x)


def of_timm() -> list[Entry]:
    """By file and first word of the name."""
    import timm
    from timm.models import list_modules

    families: dict[str, list[str]] = {}
    for module in list_modules():
        for name in timm.list_models(module=module):
            if not name.startswith("test_"):
                families.setdefault(f"{module}.{re.match('[a-z]+', name).group()}", []).append(name)
    return [
        _entry("timm", family, partial(_smallest_of_timm, sorted(names, key=_size)))
        for family, names in families.items()
    ]


def _size(name: str) -> tuple[Any, ...]:
    """Small models first, by the words and numbers of their names."""
    words = re.findall(r"[a-z]+|\d+", name)
    numbers = [int(w) for w in words if w.isdigit()]
    word = min((SIZES.index(w) for w in name.split("_") if w in SIZES), default=len(SIZES))
    return word, numbers[:1] or [0], len(name), name


def _smallest_of_timm(names: list[str]) -> Iterator[Made]:
    import timm

    name, options = _below_most(names)
    for side in SIDES:
        for size in ({}, {"img_size": side}):
            try:
                model = timm.create_model(name, num_classes=5, **options, **size).eval()
                x = torch.randn(SAMPLES, 3, side, side)
                with torch.no_grad():
                    finite = bool(model(x).isfinite().all())
            except Exception:
                continue
            if finite:
                # Some keep what they made in a forward pass: begin anew.
                yield name, timm.create_model(name, num_classes=5, **options, **size), x
                return
    raise ValueError(f"{name} takes pictures of none of these sides: {SIDES}")


def _below_most(names: list[str]) -> tuple[str, dict[str, Any]]:
    """The first of some names with few enough parameters, or the first with fewer blocks."""
    import timm

    for options in ({}, {"depth": 2}):
        for name in names[:6]:
            with torch.device("meta"), contextlib.suppress(TypeError):
                model = timm.create_model(name, num_classes=5, **options)
                if sum(p.numel() for p in model.parameters()) <= MOST:
                    return name, options
    return names[0], {}


def of_torchvision() -> list[Entry]:
    """By file."""
    from torchvision import models

    families: dict[str, list[str]] = {}
    for name in models.list_models(module=models):
        module = models.get_model_builder(name).__module__.rpartition(".")[2]
        families.setdefault(module, []).append(name)
    return [
        _entry("torchvision", family, partial(_made_by_torchvision, min(names, key=_number)))
        for family, names in families.items()
    ]


def _number(name: str) -> tuple[int, int]:
    return int((re.findall(r"\d+", name) or ["0"])[0]), len(name)


def _made_by_torchvision(name: str) -> Iterator[Made]:
    from torchvision import models

    side = {"inception_v3": 96}.get(name, 64)
    options: dict[str, Any] = {"num_classes": 5}
    if name.startswith("vit"):
        options["image_size"] = side
    if name == "maxvit_t":
        options["input_size"] = (side := 224, 224)
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False}
    yield name, models.get_model(name, **options), torch.randn(SAMPLES, 3, side, side)


def of_transformers() -> list[Entry]:
    """Every family with a head that classifies texts or pictures."""
    from transformers.models.auto import modeling_auto as auto

    return [
        _entry("transformers", f"{kind}.{family}", partial(_made_by_transformers, kind, family))
        for kind, families in (
            ("text", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
            ("image", auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
        )
        for family in families
    ]


def _made_by_transformers(kind: str, family: str) -> Iterator[Made]:
    import transformers

    auto = {
        "text": transformers.AutoModelForSequenceClassification,
        "image": transformers.AutoModelForImageClassification,
    }[kind]
    config = small(family)
    config.architectures = []
    x = _tokens(config) if kind == "text" else _pictures(family, config)
    model = auto.from_config(config)
    yield "", model, x
    if any("experts" in name for name, _ in model.named_modules()):
        # As it comes, experts run in grouped products, which take no float64.
        yield "eager experts", auto.from_config(config, experts_implementation="eager"), x


def _pictures(family: str, config: Any) -> Tensor:
    if family == "imagegpt":  # pictures of colours from a list
        return torch.randint(0, 90, (SAMPLES, 12))
    side = getattr(config, "image_size", 64) or 64
    side = side if isinstance(side, int) else side[0]
    return torch.randn(SAMPLES, getattr(config, "num_channels", 3), side, side)


def _tokens(config: Any) -> Tensor:
    """Two texts that end, one of them shorter than the other and padded."""
    text = getattr(config, "text_config", None) or config
    pad, end = getattr(text, "pad_token_id", 0) or 0, getattr(text, "eos_token_id", 2) or 2
    end = end[0] if isinstance(end, list) else end
    x = torch.randint(5, 90, (SAMPLES, 12))
    x[0, -1] = end
    x[1, 8], x[1, 9:] = end, pad
    return x
