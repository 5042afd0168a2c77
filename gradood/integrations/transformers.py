"""Classifiers of transformers from a folder or by type, with their image processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor, nn

from gradood.data.optional import require
from gradood.data.preprocessing import Standardising
from gradood.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from gradood.data.preprocessing import Transform


class Logits(nn.Module):
    """A classifier of transformers as a function of one tensor, which returns its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W]`` pixels or ``[N, T]`` tokens -> logits ``[N, classes]``."""
        logits: Tensor = self.model(x, return_dict=True).logits
        return logits


def is_transformers_name(name: str) -> bool:
    """Whether ``name`` is a folder with a configuration, or a type of model that is known."""
    if (Path(name) / "config.json").is_file():
        return True
    try:
        return name in require("transformers", "models", "--model").CONFIG_MAPPING
    except InputError:
        return False


def transformers_model(
    name: str, *, weights: str | Path | None = None, classes: int | None = None
) -> tuple[nn.Module, Transform | None]:
    """A classifier of transformers in eval mode, and what makes its inputs from pictures.

    Nothing is downloaded, no code of the folder's own is run, and weights are read from
    safetensors, or from a state dict that holds nothing but tensors.

    Args:
        name: A folder written by ``save_pretrained``, or a type such as ``"vit"`` or ``"bert"``
            for its standard configuration.
        weights: File of weights; None takes the folder's, and leaves those of a type random.
        classes: Of the weights' last layer, for a type.

    Returns:
        The model, and the folder's image processor as a function; None if it has none.

    Raises:
        InputError: Transformers is not installed, or the name is neither.
        CheckpointError: The weights cannot be read, or do not fit.
    """
    from gradood.data.weights import read_state_dict

    transformers = require("transformers", "models", "--model")
    folder = Path(name)
    options = {} if classes is None else {"num_labels": classes}
    try:
        if (folder / "config.json").is_file():
            config = transformers.AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **options
            )
        else:
            config = transformers.AutoConfig.for_model(name, **options)
        architecture = _architecture(transformers, config)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"transformers cannot make a classifier of {name!r}: {error}") from error
    if weights is not None:
        given: Any = None, {"state_dict": read_state_dict(weights)}
    elif (folder / "config.json").is_file():
        given = folder, {"use_safetensors": True, "local_files_only": True}
    else:
        return Logits(architecture(config).eval()), None
    model = _filled(architecture, config, weights or folder, *given)
    return Logits(model.eval()), _processor(transformers, folder)


def _architecture(transformers: Any, config: Any) -> Any:
    """The class that the configuration names, if it is one of the package's own classifiers."""
    for name in config.architectures or ():
        # Some names have a suffix: "…ForImageClassificationWithTeacher".
        if "Classification" in name and hasattr(transformers, name):
            return getattr(transformers, name)
    for auto in ("AutoModelForImageClassification", "AutoModelForSequenceClassification"):
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError(f"{config.model_type} has no classifier of images or sequences")


def _filled(
    architecture: Any, config: Any, origin: object, place: Any, options: dict[str, Any]
) -> nn.Module:
    """The model with all its weights; transformers knows the older names of many."""
    try:
        model, report = architecture.from_pretrained(
            place, config=config, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"the weights {origin} do not fit the model: {error}") from error
    problems = [
        f"{kind.replace('_keys', '')} {name}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for name in sorted(map(str, report[kind]))
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(
            f"the weights {origin} do not fit the model: {'; '.join(problems[:5])}{more}"
        )
    filled: nn.Module = model
    return filled


def _describes_images(folder: Path) -> bool:
    """Whether a folder says how pictures are prepared: by themselves, or beside other inputs."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        inner = content.get("image_processor") if isinstance(content, dict) else None
        found = inner if isinstance(inner, dict) else content
        if "image_processor_type" in found or "image_mean" in found or "size" in found:
            return True
    return False


def _refusing(message: str) -> Transform:
    """What stands for preprocessing that is described and cannot be had: pictures are not bent."""

    def refuse(image: Any) -> Tensor:
        raise InputError(message)

    return refuse


def _processor(transformers: Any, folder: Path) -> Transform | None:
    if not _describes_images(folder):
        return None
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        message = f"the image processor of {folder} cannot be made ({error}); use --preprocess"
        return _refusing(message)

    def prepare(image: Any) -> Tensor:
        pixels: Tensor = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]
        return pixels[0]

    scale = getattr(processor, "rescale_factor", None) or 1 / 255
    if not getattr(processor, "do_rescale", True) or abs(255 * scale - 1) > 1e-6:
        return prepare  # in units of its own
    if not getattr(processor, "do_normalize", False):
        return Standardising(prepare, 0.0, 1.0)
    return Standardising(prepare, processor.image_mean, processor.image_std)
