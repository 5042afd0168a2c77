"""What a public function works on comes first; everything else is given by its name."""

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import gradood
from gradood import integrations

PACKAGES = [
    *("gradood", "gradood.scoring.ray", "gradood.data.files"),
    *(f"gradood.{name}" for name in gradood.__all__ if inspect.ismodule(getattr(gradood, name))),
    *(
        f"gradood.integrations.{found.name}"
        for found in pkgutil.iter_modules(integrations.__path__)
    ),
]
#: What a call is about, beside the model and x: certificates, attacks, GradientDetector.
SUBJECTS = {"settings", "labels", "preset"}
#: Methods whose arguments another package prescribes.
PRESCRIBED = ("Postprocessor.", "GradientOutlier.fit")


def named(package: str) -> Iterator[tuple[str, object]]:
    """What a package offers, and public methods of its classes."""
    module = importlib.import_module(package)
    own = [name for name, value in vars(module).items()
           if not name.startswith("_") and getattr(value, "__module__", "") == package]  # fmt: skip
    for name in getattr(module, "__all__", own):
        value = getattr(module, name)
        if not callable(value):
            continue
        yield name, value
        if not inspect.isclass(value):
            continue
        for method, function in inspect.getmembers(value, inspect.isroutine):
            if not method.startswith("_") and getattr(function, "__module__", "").startswith(
                "gradood."
            ):
                yield f"{name}.{method}", function


def positional(function: object) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [p for p in parameters if p.kind is kind and p.name not in ("self", "cls")]


FUNCTIONS = {
    f"{package}: {name}": value
    for package in PACKAGES
    for name, value in named(package)
    # The fields of a result are in the order of its documentation.
    if not (dataclasses.is_dataclass(value) or hasattr(value, "_fields"))
    and not name.startswith(PRESCRIBED)
}


def test_the_public_functions_are_found() -> None:
    found = {name.partition(": ")[2] for name in FUNCTIONS}
    assert found >= {"certify_mean", "pgd", "Detector.calibrate", "EpsDenoiser", "timm_model"}


def test_options_are_given_by_name() -> None:
    faults = []
    for name, function in FUNCTIONS.items():
        parameters = positional(function)
        # An option may come first where nothing else does: Energy(model).fit().
        names = [p.name for p in parameters]
        after_x = names[names.index("x") + 1 :] if "x" in names else []
        options = [p.name for p in parameters[1:] if p.default is not p.empty]
        faults += [f"{name}: {option}" for option in {*options, *after_x} - SUBJECTS]
    assert not faults
