"""Models of timm by name, with the preprocessing that timm documents for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradood.data.optional import require
from gradood.data.preprocessing import Standardising
from gradood.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from gradood.data.preprocessing import Transform


def is_timm_name(name: str) -> bool:
    """Whether timm is installed and knows an architecture of this name."""
    try:
        return bool(require("timm", "models", "--model").is_model(name))
    except InputError:
        return False


def timm_model(
    name: str, *, weights: str | Path | None = None, classes: int | None = None
) -> tuple[nn.Module, Transform]:
    """A timm architecture in eval mode, and what makes its inputs from pictures.

    Nothing is downloaded.

    Args:
        name: As in ``timm.list_models()``; a tag after a dot chooses the preprocessing.
        weights: File of weights; None leaves them random.
        classes: Of the weights' last layer; None for the architecture's own number.

    Raises:
        InputError: Timm is not installed, or does not know the name.
        CheckpointError: The weights cannot be read, or do not fit.
    """
    from gradood.data.weights import load_weights

    timm = require("timm", "models", "--model")
    if not timm.is_model(name):
        raise InputError(f"timm knows no model {name!r}; timm.list_models() shows all")
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    model: nn.Module = timm.create_model(name, pretrained=False, **options).eval()
    if weights is not None:
        load_weights(model, weights)
    return model, timm_transform(model)


def timm_transform(model: nn.Module) -> Transform:
    """The evaluation transform that timm's configuration of ``model`` describes."""
    data = require("timm.data", "models", "--model")
    config = data.resolve_model_data_config(model)
    transform = data.create_transform(**config, is_training=False)
    mode = {1: "L", 3: "RGB"}.get(config["input_size"][0], "RGB")

    def prepare(image: Any) -> Any:
        return transform(image.convert(mode))

    return Standardising(prepare, config["mean"], config["std"])
