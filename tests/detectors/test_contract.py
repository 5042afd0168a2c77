"""What every detector promises, whichever it is; and what a class that promises less is told."""

import inspect

import pytest
import torch

import gradood
from gradood.detectors import DETECTORS, Detector, NormDetector
from gradood.errors import NotFittedError

CLASSES = DETECTORS.concrete()
OWN = {name: cls for name, cls in CLASSES.items() if cls.__module__.startswith("gradood.")}


@pytest.mark.parametrize("name", OWN)
def test_a_detector_is_fitted_scored_and_made_again(name, model, pictures):
    detector = OWN[name](model)
    assert detector.is_fitted == (not detector.LEARNED)
    if not detector.is_fitted:
        with pytest.raises(NotFittedError, match=f"this {name} is not fitted"):
            detector.state  # noqa: B018
    sources = [pictures.fit]
    if "anomalies" in inspect.signature(detector.fit).parameters:
        sources.append(pictures.anomalies)
    assert detector.fit(*sources) is detector and detector.is_fitted
    assert detector.state.keys() == detector.LEARNED
    again = type(detector)(model, **detector.settings())
    again.restore(detector.state)
    assert torch.equal(again(pictures.anomalous[:8]), detector.score(pictures.anomalous[:8]))


def test_the_command_line_names_detectors_that_can_be_made(model):
    assert {"gradient", "gradient-knn", "energy"} <= DETECTORS.named.keys()
    assert set(DETECTORS.named.values()) <= set(CLASSES.values())


def test_a_class_without_fit_is_abstract(model):
    class Unfinished(Detector):
        def score_batch(self, batch):
            return batch.flatten(1).sum(1)

        def score_norms(self, norms):
            return norms.values.sum(1)

    with pytest.raises(TypeError, match="abstract.*fit"):
        Unfinished(model)


@pytest.mark.parametrize("base", [Detector, NormDetector, gradood.GradientKNN])
def test_an_old_name_of_a_method_is_refused_with_the_new_one(base):
    with pytest.raises(TypeError, match=r"Old\._settings is now settings"):
        type("Old", (base,), {"_settings": lambda self: {}})
