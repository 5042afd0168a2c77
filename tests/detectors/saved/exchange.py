"""Save detectors, or score with those that another PyTorch saved: ``exchange.py save FOLDER``."""

import json
import sys
from pathlib import Path

import torch
from torch import nn

import gradood
from tests.detectors.saved.networks import inputs, network

LABEL = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.bfloat16)


def detectors():
    model, x = network(), inputs(400)
    yield "energy", gradood.Energy(model, progress=False)
    for name, kind in (
        ("knn", gradood.GradientKNN),
        ("mahalanobis", gradood.GradientMahalanobis),
        ("gradient", gradood.GradientDetector),
    ):
        yield name, kind(model, progress=False).fit(x)
    several = gradood.GradientKNN(model, label=["all_hot", LABEL], progress=False)
    yield "labels", several.fit(x)


def save(folder):
    found = {"torch": torch.__version__, "scores": {}}
    for name, detector in detectors():
        detector.calibrate(inputs(60, 0.1), fpr=0.1).save(folder / name)
        found["scores"][name] = [*detector.score(inputs(5, 0.3)).tolist(), detector.threshold]
    (folder / "expected.json").write_text(json.dumps(found))


def check(folder):
    """The largest relative difference to the scores that were saved with the detectors."""
    expected = json.loads((folder / "expected.json").read_text())["scores"]
    worst = 0.0
    for name, values in expected.items():
        for model in (network(), nn.DataParallel(network())):
            detector = gradood.load(folder / name, model.eval())
            found = [*detector.score(inputs(5, 0.3)).tolist(), detector.threshold]
            pairs = zip(found, values, strict=True)
            worst = max([worst, *(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)])
    print(json.dumps({"torch": torch.__version__, "read": len(expected), "worst": worst}))


if __name__ == "__main__":
    {"save": save, "check": check}[sys.argv[1]](Path(sys.argv[2]))
