"""gradood certify writes certificates that gradood certify --verify accepts, and only those."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gradood.cli import app

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, ["certify", *map(str, arguments)])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "certificates.jsonl"


@pytest.mark.parametrize(
    "options",
    [
        ("--radius", 0.005),
        ("--kind", "decision", "--threshold", 0.6, "--radius", 0.005),
        ("--radius", 0.005, "--radius", 0.001, "--radius", 0.1),
        ("--kind", "mean", "--radius", 0, "--radius", 0.01),
        ("--kind", "quantile", "--score", "energy", "--radius", 0.01),
        ("--kind", "spread", "--score", "energy", "--radius", 0, "--radius", 0.01),
    ],
    ids=str,
)
def test_certificates_can_be_verified(out, options):
    made = run("--count", 2, "--n", 64, "--sigma", 0.01, "--out", out, *options)
    assert made.exit_code == 0, made.output
    assert "2 certificates" in made.output
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["id"] for record in records] == [0, 1]
    score = options[options.index("--score") + 1] if "--score" in options else "max-softmax"
    for again in ((), ("--again", "--score", score)):
        checked = run("--verify", out, *again)
        assert checked.exit_code == 0, checked.output
        assert "2 of 2 certificates are right" in checked.output


def test_altered_certificates_fail(out):
    run("--count", 2, "--n", 64, "--sigma", 0.01, "--out", out)
    lines = out.read_text().splitlines()
    record = json.loads(lines[1])
    record["result"]["radius"] += 0.001
    out.write_text("\n".join([lines[0], json.dumps(record)]))
    checked = run("--verify", out)
    assert checked.exit_code == 1
    assert "id 1: radius" in checked.output and "1 of 2" in checked.output


@pytest.mark.parametrize("label, forged", [("units", "input"), ("file", "another.png")])
def test_labels_that_are_forged_in_any_record_fail(out, label, forged):
    run("--count", 3, "--n", 64, "--sigma", 0.01, "--out", out)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    records[2][label] = forged
    out.write_text("\n".join(map(json.dumps, records)))
    checked = run("--verify", out, "--again")
    assert checked.exit_code == 1
    assert f"id 2: its {label} is {forged}" in checked.output and "2 of 3" in checked.output


def test_a_model_and_inputs_of_ones_own(tmp_path, out, monkeypatch):
    (tmp_path / "own_network.py").write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    inputs = tmp_path / "x.npy"
    np.save(inputs, np.random.default_rng(0).random((3, 4), np.float32))
    options = ("--model", "own_network:build", "--inputs", inputs)
    made = run(*options, "--n", 100, "--out", out)
    assert made.exit_code == 0, made.output
    checked = run("--verify", out, "--again", *options)
    assert checked.exit_code == 0 and "3 of 3" in checked.output
    detector = run(
        *options, "--n", 100, "--kind", "quantile", "--score", "gradient-mahalanobis", "--out", out
    )
    assert detector.exit_code == 2 and "--fit-inputs" in detector.output


@pytest.mark.parametrize(
    "options, message",
    [
        (("--sigma", -1), "sigma"),
        (("--alpha", 2), "alpha"),
        (("--radius", -1), "radius"),
        (("--kind", "decision"), "--threshold"),
        (("--model", "nothing:here"), "module:function"),
        (("--inputs", "missing.npy"), "does not exist"),
        (("--verify", "missing.jsonl"), "cannot read"),
    ],
    ids=str,
)
def test_mistakes_get_a_sentence(options, message, out):
    result = run("--count", 1, "--out", out, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_denoisers_of_ones_own_and_of_diffusers(tmp_path, out, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    )
    unet.save_pretrained(tmp_path / "pipeline" / "unet")
    diffusers.DDIMScheduler(prediction_type="sample").save_pretrained(
        tmp_path / "pipeline" / "scheduler"
    )
    (tmp_path / "own_denoiser.py").write_text("def halve(noisy, sigma):\n    return noisy / 2\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = {
        str(tmp_path / "pipeline"): "EpsDenoiser(sample, ",
        "own_denoiser:halve": "halve",
    }
    for name, recorded in names.items():
        made = run("--count", 1, "--n", 16, "--denoiser", name, "--out", out)
        assert made.exit_code == 0, made.output
        assert json.loads(out.read_text())["settings"]["denoiser"].startswith(recorded)
        checked = run("--verify", out, "--again", "--denoiser", name)
        assert "1 of 1" in checked.output, checked.output
    without = run("--verify", out, "--again")
    assert without.exit_code == 2 and "denoiser" in without.output
    for name, message in (("no_module:name", "module:name"), (str(tmp_path), "diffusers")):
        failed = run("--denoiser", name, "--out", out)
        assert failed.exit_code == 2 and message in failed.output
