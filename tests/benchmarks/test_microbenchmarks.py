"""The microbenchmarks leave nothing out; what they measure, they say themselves."""

import inspect
from collections.abc import Callable

import gradood
from benchmarks.test_detection_benchmark import CERTIFICATES, DETECTORS
from benchmarks.test_operators_benchmark import OPERATORS
from gradood import detectors, ops

#: Of ``gradood.ops``, what is no operator.
OTHERS = {"Served", "offers", "tracing"}


def test_every_operator_has_a_benchmark():
    assert {name for _, name in OPERATORS.values()} == set(ops.__all__) - OTHERS


def test_every_detector_has_a_benchmark():
    found = {
        name
        for name, kind in inspect.getmembers(detectors, inspect.isclass)
        if issubclass(kind, detectors.Detector) and not inspect.isabstract(kind)
    }
    assert found == set(DETECTORS)


def test_every_certificate_has_a_benchmark():
    found = {
        name.removeprefix("certify_")
        for name in gradood.__all__
        if name.startswith("certify_") and isinstance(getattr(gradood, name), Callable)
    }
    assert found == {kind.partition(",")[0] for kind in CERTIFICATES}
