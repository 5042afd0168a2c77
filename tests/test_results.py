"""Results: frozen dataclasses that unpack, and say what their named tuples' methods became."""

from dataclasses import FrozenInstanceError

import pytest

import gradood


def test_a_result_unpacks_in_the_order_of_its_fields():
    metrics = gradood.evaluate([0.0, 1.0, 2.0], [1.5, 3.0])
    assert [*metrics] == [*metrics.asdict().values()]
    assert list(metrics.asdict())[0] == "auroc" and [*metrics][0] == metrics.auroc == 5 / 6


@pytest.mark.parametrize(
    ("old", "new"), [("_asdict", r"asdict\(\)"), ("_replace", r"dataclasses\.replace")]
)
def test_methods_of_named_tuples_say_what_they_became(old, new):
    with pytest.raises(AttributeError, match=f"{old}.*{new}"):
        getattr(gradood.evaluate([0.0, 1.0], [1.5]), old)


def test_a_result_does_not_change():
    with pytest.raises(FrozenInstanceError):
        gradood.evaluate([0.0, 1.0], [1.5]).auroc = 1.0
