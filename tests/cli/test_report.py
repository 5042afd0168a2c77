"""Reports that commands write, on real pictures, whatever these are called and whatever happens."""

import base64
import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image

import gradood
from gradood.data import embedded_classifier, embedded_images
from gradood.detectors.uncertainty import GradUncertainty
from gradood.evaluation import control_fdr
from gradood.scoring.rows import read_rows
from tests.commands import run
from tests.pictures import pixels, write_pictures

#: A folder and a file in it: together the name that a careless page would run.
SCRIPT = ("<script>alert(1)<", "script>.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of pictures, and a detector fitted on one of them by the command."""
    root = tmp_path_factory.mktemp("data")
    for folder, name, count in (
        ("train", "fashion-mnist-train", 150),
        ("normal", "fashion-mnist", 30),
        ("mnist", "mnist", 30),
    ):
        write_pictures(root / folder, name, count)
    made = run("fit", root / "train", "--out", root / "knn", "--json")
    assert made.exit_code == 0, made.output
    (root / "mnist" / SCRIPT[0]).mkdir()
    # The most anomalous of all, so that the page shows it.
    Image.fromarray(pixels("photos", 1)[0]).save(root / "mnist" / SCRIPT[0] / SCRIPT[1])
    return root


def page_in(folder):
    return (folder / "index.html").read_text(encoding="utf-8")


def inlined(html):
    """Every picture on a page."""
    for content in re.findall(r'src="data:image/png;base64,([^"]*)"', html):
        yield np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def best(path, count=12):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: -row["score"])[:count]


def test_score_shows_the_most_anomalous_inputs_and_their_layers(data, tmp_path):
    out, report = tmp_path / "scores.jsonl", tmp_path / "new" / "report"
    result = run("score", data / "mnist", "--detector", data / "knn", "--out", out,
                 "--report", report)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert str(report / "index.html") in result.output.replace("\n", "")
    html = page_in(report)
    captions = re.findall(r"<figcaption><b>([^<]*)</b>([^<]*)<ul>(.*?)</ul>", html)
    assert len(captions) == html.count("<figure") == html.count("<img") == 12
    for (score, name, layers), row in zip(captions, best(out), strict=True):
        assert score == f"{row['score']:.4g}"
        assert name.replace("&lt;", "<").replace("&gt;", ">") == row["id"]
        expected = [f"{e['name']} {e['deviation']:+.1f}σ" for e in row["layers"]]
        assert re.findall(r"<li>([^<]*)</li>", layers) == expected
    assert "/".join(SCRIPT) in [row["id"] for row in best(out)]
    assert "<script" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;.png" in html
    threshold = gradood.load(data / "knn", embedded_classifier()).threshold
    assert f"{threshold:.6g}, for at most 0.05 false alarms" in html
    assert "the 30 normal ones that it was calibrated with" in html
    assert sorted(path.name for path in report.iterdir()) == [
        "histogram-1.png", "index.html", "throughput-1.png",
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_p_values_are_shown_and_what_can_be_called_from_them(data, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    out, report = tmp_path / f"scores.{suffix}", tmp_path / "report"
    result = run("score", data / "mnist", "--detector", data / "knn", "--out", out, "--p-values",
                 "--report", report)  # fmt: skip
    assert result.exit_code == 0, result.output
    html = page_in(report)
    p = np.array([row["p_value"] for row in read_rows(out, ("id", "score", "error", "p_value"))])
    for level in (0.05, 0.2):
        calls = [control_fdr(p, level=level, method=method).sum() for method in ("bh", "storey")]
        cells = [f"{level:g}", (p <= level).sum(), f"{level * len(p):,.0f}", *calls]
        assert " ".join(map(str, cells)) in re.sub(r"(<[^>]*>)+", " ", html)
    assert f"(p = {p.min():.3g})" in html
    assert (report / "p-values-1.png").is_file()


def test_a_resumed_run_gives_the_same_report(data, tmp_path):
    from gradood.scoring.output import ScoreFile

    command = ("score", data / "mnist", "--detector", data / "knn", "--batch-size", 8)
    run(*command, "--out", tmp_path / "whole.jsonl", "--report", tmp_path / "whole")
    append = ScoreFile.append

    def killed(self, *arguments):
        append(self, *arguments)
        raise MemoryError

    resumed = (*command, "--out", tmp_path / "part.jsonl", "--report", tmp_path / "part")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScoreFile, "append", killed)
        assert run(*resumed).exit_code == 2
    assert not (tmp_path / "part" / "index.html").exists()
    result = run(*resumed, "--resume")
    assert result.exit_code == 0, result.output
    assert "8 others were scored by an earlier run" in page_in(tmp_path / "part")

    def sections(folder):
        found = re.findall(r"<section>.*?</section>", page_in(folder), re.S)
        return [one for one in found if "Throughput</h2>" not in one and "was made" not in one]

    assert len(sections(tmp_path / "part")) == 2
    assert sections(tmp_path / "part") == sections(tmp_path / "whole")
    # And again from the finished file, without scoring anything.
    (tmp_path / "part" / "index.html").unlink()
    assert run(*resumed, "--resume").exit_code == 0
    assert sections(tmp_path / "part") == sections(tmp_path / "whole")
    assert "nothing was scored anew" in page_in(tmp_path / "part")


@pytest.mark.parametrize("kind", ["npy", "tar", "parquet"])
def test_inputs_of_every_kind_are_shown(data, tmp_path, kind):
    images, path = pixels("mnist", 15), tmp_path / f"inputs.{kind}"
    encoded = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    if kind == "npy":
        np.save(path, images)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for i, content in enumerate(encoded):
                member = tarfile.TarInfo(f"{i:05}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({"image": encoded}), path)
    out = tmp_path / "scores.jsonl"
    result = run("score", path, "--detector", "energy", "--out", out, "--report", tmp_path / "r")
    assert result.exit_code == 0, result.output
    order = [int(re.findall(r"\d+", row["id"])[-1]) for row in best(out)]
    for found, number in zip(inlined(page_in(tmp_path / "r")), order, strict=True):
        np.testing.assert_array_equal(found, images[number])


def test_skipped_inputs_are_listed_with_what_is_wrong(data, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    Image.fromarray(pixels("mnist", 1)[0]).save(folder / "a.png")
    (folder / "b<i>.png").write_bytes(b"no picture")
    result = run("score", folder, "--on-error", "skip", "--out", tmp_path / "s.jsonl",
                 "--report", tmp_path / "r", "--json")  # fmt: skip
    assert result.exit_code == 3
    assert all(json.loads(line) for line in result.stdout.splitlines())
    html = page_in(tmp_path / "r")
    assert "Skipped: 1 inputs" in html and "b&lt;i&gt;.png" in html and "unknown format" in html


@pytest.mark.slow
def test_evaluate_shows_curves_of_files_and_of_inputs_alike(data, tmp_path):
    for name in ("normal", "mnist"):
        run("score", data / name, "--detector", data / "knn", "--out", tmp_path / f"{name}.parquet")
    of_files = run("evaluate", "--normal", tmp_path / "normal.parquet", "--anomalous",
                   tmp_path / "mnist.parquet", "--report", tmp_path / "files")  # fmt: skip
    of_inputs = run("evaluate", "--normal", data / "normal", "--anomalous", data / "mnist",
                    "--detector", data / "knn", "--report", tmp_path / "inputs")  # fmt: skip
    assert of_files.exit_code == of_inputs.exit_code == 0, of_files.output + of_inputs.output
    names = ["histogram-1.png", "index.html", "precision-recall-1.png", "roc-1.png"]
    tables = []
    for folder in (tmp_path / "files", tmp_path / "inputs"):
        assert sorted(path.name for path in folder.iterdir()) == names
        tables.append(re.findall(r"<td>([^<]*)</td>", page_in(folder)))
    assert tables[0] == tables[1] and len(tables[0]) == 6 + 4
    # Six each: normal ones, the most and the least anomalous ones; pictures need the inputs.
    assert page_in(tmp_path / "files").count("<figure") == 18
    assert (
        page_in(tmp_path / "inputs").count("<img") == 18 > page_in(tmp_path / "files").count("<img")
    )
    assert "<script" not in page_in(tmp_path / "inputs")


@pytest.mark.slow
def test_evaluate_draws_the_guarantee_against_the_radius(data, tmp_path):
    out = tmp_path / "metrics.json"
    result = run(
        "evaluate", "--normal", data / "mnist", "--anomalous", data / "normal", "--detector",
        "max-softmax", "--guarantee", "l2:0.05", "--samples", 100, "--out", out,
        "--report", tmp_path / "r",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "r").glob("guarantee-*.png"))) == 3
    html = page_in(tmp_path / "r")
    numbers = html[html.index("<summary>") :]
    rows = [re.findall(r"<td>([^<]*)</td>", row) for row in numbers.split("<tr>")[2:13]]
    (found,) = json.loads(out.read_text())["sets"].values()
    bound = found["guaranteed l2:0.05"]
    assert rows[-1] == [f"{100 * bound[n]:.1f}" for n in ("auroc", "aupr_anomalous", "fpr95")]
    auroc = [float(row[0]) for row in rows]
    assert auroc == sorted(auroc, reverse=True) and auroc[0] > auroc[-1]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--kind", "decision", "--threshold", 0.6),
        ("--kind", "mean", "--radius", 0, "--radius", 0.01),
        ("--kind", "quantile", "--score", "energy", "--radius", 0, "--radius", 0.5),
    ],
    ids=str,
)
def test_certify_draws_the_guarantee_against_the_radius(tmp_path, options):
    out = tmp_path / "certificates.jsonl"
    result = run("certify", "--count", 4, "--n", 64, "--sigma", 0.01, "--out", out,
                 "--report", tmp_path / "r", *options)  # fmt: skip
    assert result.exit_code == 0, result.output
    html = page_in(tmp_path / "r")
    assert "Guarantee against radius" in html and html.count("<figure") == 4
    assert len(list((tmp_path / "r").glob("*.png"))) == 1
    for record in map(json.loads, out.read_text().splitlines()):
        if "radius" in record["result"]:
            certain = record["result"]["radius"] > 0
            assert (
                f"input {record['id']}: radius {record['result']['radius']:.4g}" in html
            ) == certain
        else:
            assert f"{float(record['result']['lower'][0]):.4g}" in html


def test_a_report_that_cannot_be_written_stops_before_anything_is_computed(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for command in (
        ("score", data / "mnist", "--out", tmp_path / "s.jsonl"),
        ("evaluate", "--normal", data / "mnist", "--anomalous", data / "mnist"),
        ("certify", "--out", tmp_path / "c.jsonl"),
    ):
        result = run(*command, "--report", tmp_path / "file")
        assert result.exit_code == 2 and "cannot write to --report" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_detector_that_learns_nothing_of_normal_inputs_names_no_layers(data, tmp_path):
    model = embedded_classifier()
    GradUncertainty(model).save(tmp_path / "sum.safetensors")  # before any norm was computed
    out = tmp_path / "scores.jsonl"
    result = run("score", data / "mnist", "--detector", tmp_path / "sum.safetensors", "--out", out,
                 "--report", tmp_path / "r")  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    x = (embedded_images("mnist")[:30] * 255).round() / 255
    expected = GradUncertainty(model).score(x).tolist()
    assert [row["score"] for row in rows[:30]] == pytest.approx(expected, rel=1e-4)
    assert all(row["layers"] == [] for row in rows)
    assert "no layers to name" in page_in(tmp_path / "r")
    norms = gradood.gradient_norms(model, x, loss="bce_softmax")
    with pytest.raises(gradood.errors.InputError, match="learns nothing of normal inputs"):
        GradUncertainty(model).deviations(norms)
