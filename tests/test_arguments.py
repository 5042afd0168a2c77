"""Public functions carry ``gradood.arguments.checked``: wrong types are refused by name."""

import inspect
from dataclasses import is_dataclass

import numpy as np
import pytest
import torch
from torch import nn

import gradood
from gradood import arguments
from gradood.data.files import open_source
from gradood.data.preprocessing import Preprocessing
from gradood.errors import GradoodError, InputError
from gradood.integrations.openood import openood_postprocessor
from gradood.integrations.pytorch_ood import pytorch_ood_detector
from gradood.integrations.sklearn import GradientOutlier
from gradood.scoring.models import load_model
from gradood.scoring.ray import RayScorer
from gradood.scoring.stream import Stream

PACKAGES = ("attacks", "data", "detectors", "distro", "evaluation", "gradients", "smoothing")
#: Public classes that users get as results, or fill with results.
RESULTS = {"NoiseLevel", "Evidence", "Commitment", "Part", "Row", "Expectation", "Novelty",
           "Explanation"}  # fmt: skip
#: Public functions without a fixed type of argument: they look at what they are given.
OPEN = {"needs_fit", "verify", "roc_points", "evaluate", "embedded_classifier",
        "embedded_denoiser", "embedded_discriminator"}  # fmt: skip


def public():
    """Public functions, and classes that are made by users, by name."""
    others = (load_model, Preprocessing, Stream, RayScorer, open_source, openood_postprocessor,
              pytorch_ood_detector)  # fmt: skip
    found = {one.__name__: one for one in others}
    for package in (getattr(gradood, name) for name in PACKAGES):
        names = getattr(package, "__all__", [n for n in vars(package) if n[0] != "_"])
        for name in names:
            value = getattr(package, name)
            is_result = is_dataclass(value) and name not in ("Smoothing", "ImageSet")
            made = inspect.isclass(value) and not is_result and not inspect.isabstract(value)
            if (inspect.isfunction(value) or made) and name not in RESULTS | OPEN:
                found[name] = value
    for method in ("calibrate", "calibrate_by", "save", "p_values_of", "differentiable_score"):
        found[f"Energy.{method}"] = getattr(gradood.Energy(nn.Linear(2, 2).eval()), method)
    return found


PUBLIC = public()
#: Annotations that say nothing that could be checked, and the arguments that have them.
UNSAID = ("LoadedModel", "Any", "npt.ArrayLike", "Scores", "Source", "Noise", "Sequence[Row]")


def named(function):
    """Parameters with an annotation, all of which can be given by name."""
    for parameter in inspect.signature(function).parameters.values():
        kind = str(getattr(parameter.annotation, "__name__", parameter.annotation))
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            batch = parameter.name == "x" and kind != "Tensor"  # checked where it is read
            if not (batch or kind == "_empty" or any(unsaid in kind for unsaid in UNSAID)):
                yield parameter.name, kind


def test_there_is_something_to_check():
    assert len(PUBLIC) > 70 and sum(len(list(named(f))) for f in PUBLIC.values()) > 250


@pytest.mark.parametrize("name", PUBLIC)
def test_an_object_is_refused(name):
    for parameter, _ in named(PUBLIC[name]):
        with pytest.raises(InputError, match=rf"^{parameter} (=|must)"):
            PUBLIC[name](**{parameter: object()})


@pytest.mark.parametrize("wrong", ["x", b"1", {"a": 1}, [None], print])
@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_no_number_is_refused(name, wrong):
    for parameter, kind in named(PUBLIC[name]):
        taken = (wrong == "x" and "str" in kind) or (wrong is print and "Callable" in kind)
        if any(number in kind for number in ("int", "float", "bool")) and not taken:
            with pytest.raises(InputError, match=rf"^{parameter} = "):
                PUBLIC[name](**{parameter: wrong})


MODEL = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
X = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
ENERGY = gradood.Energy(MODEL, progress=False)
LABELS = torch.zeros(30, dtype=torch.int64)
SCORES = {"scores_normal": [0.1], "scores_anomalous": [0.2]}
BOUNDS = {"upper_normal": [0.1], "lower_anomalous": [0.2], "radius": 0.1, "point_alpha": 1e-5}
#: Whole calls, each with one argument that is wrong.
CALLS = {
    "a function as model": (gradood.GradientKNN, {"model": lambda x: x}, "torch.nn.Module"),
    "a function to attack": (gradood.attacks.fgsm, {"model": print, "x": X, "labels": LABELS},
                             "torch.nn.Module"),
    "epsilon": (gradood.attacks.pgd, {"model": MODEL, "x": X, "labels": LABELS, "epsilon": "x"},
                "epsilon = 'x'; expected a number"),
    "norm": (gradood.attacks.pgd, {"model": MODEL, "x": X, "labels": LABELS, "norm": "l3"},
             'expected "linf" or "l2"'),
    "fpr": (ENERGY.calibrate, {"normal": X, "fpr": "x"}, "fpr = 'x'; expected a number"),
    "fpr of truth": (ENERGY.calibrate, {"normal": X, "fpr": True}, "expected a number"),
    "normal": (ENERGY.calibrate, {"normal": 3}, "cannot read inputs from int"),
    "fit": (gradood.GradientKNN(MODEL, progress=False).fit, {"normal": None}, "NoneType"),
    "sigma": (gradood.Smoothing, {"sigma": [0.1]}, r"sigma = \[0.1\]; expected a number"),
    "n": (gradood.Smoothing, {"sigma": 0.1, "n": 3.5}, "n = 3.5; expected an integer"),
    "clamp": (gradood.Smoothing, {"sigma": 0.1, "clamp": 1.0}, "2 of a number or None"),
    "settings": (gradood.certify_class, {"model": MODEL, "x": X, "settings": 0.1}, "a Smoothing"),
    "scores": (gradood.evaluate, SCORES | {"scores_normal": "x"}, "scores_normal"),
    "upper_normal": (gradood.evaluate_guaranteed, BOUNDS | {"upper_normal": {}}, "upper_normal"),
    "radius": (gradood.evaluate_guaranteed, BOUNDS | {"radius": "x"}, "radius"),
    "p": (gradood.control_fdr, {"p": object()}, "p must be real numbers"),
    "of a commitment": (gradood.smoothing.commit, {"kind": "quantile", "model": MODEL, "x": X,
                        "settings": gradood.Smoothing(sigma=0.1), "q": "x"}, "q = 'x'"),
    "of scikit-learn": (GradientOutlier(MODEL, detector=3).fit, {"X": X.numpy()}, "detector = 3"),
    "batch_size": (Stream, {"compute": print, "loaded": None, "batch_size": 0}, "at least 1"),
    "negative count": (gradood.data.uniform_noise, {"count": -1}, "at least 0"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "given", "message"), CALLS.values(), ids=CALLS)
def test_a_call_says_what_is_wrong_with_it(function, given, message):
    with pytest.raises(GradoodError, match=message):
        function(**given)


@arguments.checked
def declared(
    number: float = 0.0,
    count: int | None = None,
    both: tuple[float, float] = (0.0, 1.0),
    several: "list[int] | float" = 0.0,
    unknown: "NotDefinedAnywhere" = None,  # noqa: F821
):
    """Something."""
    return number, count, both


def test_scalars_of_other_libraries_are_numbers():
    found = declared(torch.tensor(0.5), np.int64(3), both=[np.float32(0.5), 2])
    assert found == (0.5, 3, (0.5, 2.0))
    assert [type(value) for value in found] == [float, int, tuple]


def test_python_itself_says_that_an_argument_is_missing_or_unknown():
    assert declared.__doc__ == "Something." and declared(unknown=print)
    with pytest.raises(TypeError, match="wrong"):
        declared(wrong=1)
    with pytest.raises(TypeError, match="model"):
        gradood.GradientKNN()
