"""Read a detector from a file."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gradood.arguments import checked
from gradood.detectors.base import DETECTORS, Detector
from gradood.detectors.checkpoint import damage_named, read
from gradood.errors import CheckpointError


@checked
def load(path: str | Path, model: nn.Module) -> Detector:
    """Read a detector that ``Detector.save`` wrote, for the classifier it was fitted on.

    Scores mean nothing for other weights than those it was fitted on. So names and shapes of all
    parameters are compared, and some values of each, up to what a change of dtype makes of them.

    Args:
        path: A file written by ``save``.
        model: The classifier, on the device where scores shall be computed.

    Returns:
        The fitted detector, with its threshold if it had one.

    Raises:
        CheckpointError: The file is missing, damaged or not one of ours, or the detector belongs to
            a model with other parameters or weights; the message names what differs.
    """
    with damage_named(path):
        contents, classes = read(path, model), DETECTORS.concrete()
        if contents.kind not in classes:
            raise CheckpointError(
                f"{path} holds a {contents.kind}, which is not among the known detectors: "
                f"{', '.join(sorted(classes))}. If it is your own class, import its module first"
            )
        detector = classes[contents.kind].from_contents(contents, model)
        if contents.learned.keys() != detector.LEARNED:
            raise CheckpointError(
                f"{path} is damaged: it holds {sorted(contents.learned)}, expected "
                f"{sorted(detector.LEARNED)}"
            )
        return detector
