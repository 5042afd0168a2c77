"""gradood explain: the layers that reacted and the nearest normal inputs, against the library."""

import numpy as np
import pytest
from typer.testing import CliRunner

import gradood
from gradood.cli import app
from gradood.data import embedded_classifier, embedded_images
from gradood.evaluation.reports.explanation import nearest
from tests.pictures import write_pictures

RUNNER = CliRunner()


def run(*arguments):
    return RUNNER.invoke(app, list(map(str, arguments)), env={"COLUMNS": "400"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("explain")
    write_pictures(root / "normal", "fashion-mnist-train", 150)
    write_pictures(root / "mnist", "mnist", 3)
    made = run("fit", root / "normal", "--detector", "gradient-knn", "--out", root / "knn")
    assert made.exit_code == 0, made.output
    return root


def test_the_page_says_what_the_library_computes(data, tmp_path):
    result = run("explain", data / "mnist", "--normal", data / "normal", "--detector",
                 data / "knn", "--count", 2, "--report", tmp_path / "page")  # fmt: skip
    assert result.exit_code == 0, result.output
    model = embedded_classifier()
    detector = gradood.load(data / "knn", model)

    def deviations(name, count):
        x = (embedded_images(name)[:count] * 255).round() / 255
        norms = gradood.gradient_norms(model, x)
        return detector.deviations(norms).double().numpy(), norms.names

    (strange, names), (usual, _) = deviations("mnist", 2), deviations("fashion-mnist-train", 150)
    html = (tmp_path / "page" / "index.html").read_text()
    for number, row in enumerate(strange):
        most = np.abs(row).argmax()
        assert f"{names[most]} {row[most]:+.1f}σ" in result.output
        distances = np.sqrt(((usual - row) ** 2).mean(1))
        for place in distances.argsort()[:10]:
            assert f"{place:05}.png" in html
        assert f"{distances.min():.2f}" in html
        assert f"<h2>{number:05}.png</h2>" in html
    found = detector.predict((embedded_images("mnist")[:2] * 255).round() / 255)
    assert html.count("is called anomalous") == found.sum() and "<script" not in html
    assert html.count("<img") == 2 * 11 and "no longer there" not in html


def test_nearest_leaves_out_the_input_itself():
    usual = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    places, distances = nearest(np.zeros(2), usual, 2)
    assert places == [2, 1] and distances[1] == pytest.approx(np.sqrt(12.5))


@pytest.mark.parametrize("detector, said", [("energy", "is Energy"), ("gradient-knn", "must be"),
                                            ("missing", "cannot read")])  # fmt: skip
def test_mistakes_get_a_sentence(data, tmp_path, detector, said):
    result = run("explain", data / "mnist", "--normal", data / "normal", "--detector", detector,
                 "--report", tmp_path / "page")  # fmt: skip
    assert result.exit_code == 2 and said in result.output
