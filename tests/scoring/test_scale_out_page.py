"""The recipe of docs/scale-out.md that needs no engine gives the detector's scores."""

import io
from pathlib import Path

import pytest
from PIL import Image

import gradood
from gradood.data import embedded_classifier, embedded_images
from tests.documentation import blocks

PAGE = Path(__file__).parents[2] / "docs" / "scale-out.md"


def test_the_recipe_for_spark_scores_data_frames(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    (code,) = (block.code for block in blocks(PAGE) if "def score_partition" in block.code)
    monkeypatch.chdir(tmp_path)
    detector = gradood.GradientKNN(embedded_classifier())
    detector.fit(embedded_images("fashion-mnist-train")[:60]).save("knn.safetensors")
    scope = {}
    exec(code, scope)
    images = (embedded_images("mnist")[:6, 0] * 255).round().byte().numpy()
    contents = []
    for pixels in images:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        contents.append(buffer.getvalue())
    contents[4] = b"no picture"
    frames = [
        pandas.DataFrame({"id": list("abc"), "image": contents[:3]}),
        pandas.DataFrame({"id": list("def"), "image": contents[3:]}),
    ]
    found = pandas.concat(scope["score_partition"](iter(frames)))
    assert found["id"].tolist() == list("abcdef")
    expected = detector.score((embedded_images("mnist")[:6] * 255).round() / 255)
    usable = [0, 1, 2, 3, 5]
    assert found["score"].to_numpy()[usable] == pytest.approx(expected[usable].numpy(), rel=1e-4)
    assert "no readable picture" in found["error"].tolist()[4]
