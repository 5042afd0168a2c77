"""Two workers give the scores of one process, each input once: torchrun and Ray Data."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import gradood
from gradood.cli import app
from gradood.data import embedded_images
from gradood.scoring.ray import RayScorer

COUNT, BATCH = 96, 8
HERE = {**os.environ, "PYTHONPATH": str(Path(gradood.__file__).parents[1])}


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four Parquet files of pictures, a detector, and the scores of one process by id."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = tmp_path_factory.mktemp("shards")
    pixels = (embedded_images("mnist")[:COUNT, 0] * 255).round().byte().numpy()
    paths = []
    for number, part in enumerate(np.split(pixels, 4)):
        rows = [png(p) for p in part]
        ids = [f"{number}-{i}" for i in range(len(part))]
        paths.append(root / f"{number}.parquet")
        parquet.write_table(arrow.table({"id": ids, "image": rows}), paths[-1])
    gradood.GradientKNN(gradood.data.embedded_classifier()).fit(
        embedded_images("fashion-mnist-train")[:80]
    ).calibrate(embedded_images("fashion-mnist-train")[80:120]).save(root / "knn")
    command = [
        "score",
        *map(str, paths),
        "--detector",
        str(root / "knn"),
        "--batch-size",
        str(BATCH),
    ]
    result = CliRunner().invoke(app, [*command, "--out", str(root / "one.jsonl")])
    assert result.exit_code == 0, result.output
    return root, paths, command, by_id(root / "one.jsonl")


def by_id(*files):
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    found = {row["id"]: (row["score"], row["decision"]) for row in rows}
    assert len(found) == len(rows)
    return found


def ranks(command, out):
    """The command as two processes that torchrun's variables tell apart."""
    for rank in (0, 1):
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        done = CliRunner().invoke(app, [*command, "--out", str(out)], env=variables)
        assert done.exit_code == 0, done.output
    return sorted(out.parent.glob(f"{out.stem}-*"))


def test_ranks_share_files_and_equal_one_process(shards, tmp_path):
    _, _, command, expected = shards
    files = ranks(command, tmp_path / "scores.jsonl")
    assert [f.name for f in files] == [f"scores-0000{r}-of-00002.jsonl" for r in (0, 1)]
    assert by_id(*files) == expected
    assert [len(by_id(f)) for f in files] == [COUNT // 2] * 2


def test_ranks_share_the_inputs_of_one_file(shards, tmp_path):
    root, paths, command, expected = shards
    own = [part for part in command if part not in map(str, paths[1:])]
    found = by_id(*ranks(own, tmp_path / "scores.jsonl"))
    assert found.keys() == {name for name in expected if name.startswith("0-")}
    for name, (score, decision) in found.items():  # other batches: up to rounding
        assert score == pytest.approx(expected[name][0], rel=1e-4)
        assert decision == expected[name][1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_equals_one_process(shards, tmp_path):
    _, _, command, expected = shards
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    out = tmp_path / "scores.jsonl"
    command = [*launch, "-m", "gradood", *command, "--out", str(out)]
    done = subprocess.run(command, env=HERE, timeout=500, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert by_id(*tmp_path.glob("scores-*")) == expected


def test_a_ray_worker_scores_a_batch_and_reports_what_it_cannot_read(shards):
    root, _, _, expected = shards
    scorer = RayScorer(str(root / "knn"), on_error="skip", layers=2)
    pixels = (embedded_images("mnist")[:2, 0] * 255).round().byte().numpy()
    images = np.array([png(pixels[0]), b"no picture", png(pixels[1])], object)
    found = scorer({"id": np.array(["a", "b", "c"]), "image": images})
    assert found["id"].tolist() == ["a", "b", "c"]
    assert np.isnan(found["score"]).tolist() == [False, True, False]
    assert found["score"][0] == pytest.approx(expected["0-0"][0], rel=1e-4)
    assert found["decision"].tolist() == [expected["0-0"][1], 0, expected["0-1"][1]]
    assert "no readable picture" in found["error"][1] and found["error"][0] == ""
    assert len(json.loads(found["layers"][0])) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # of Ray's own
def test_ray_data_equals_one_process(shards, tmp_path):
    ray = pytest.importorskip("ray")
    root, paths, _, expected = shards
    ray.init(
        num_cpus=4,  # two for the actors, and some for those who read and write
        include_dashboard=False, object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": HERE["PYTHONPATH"], "OMP_NUM_THREADS": "1"}},
    )  # fmt: skip
    try:
        arguments = {"detector": str(root / "knn"), "model": {"device": "cpu"}}
        # Rows go to actors a file at a time, so the batches are those of one process.
        data = ray.data.read_parquet([str(path) for path in paths], override_num_blocks=4)
        scored = data.map_batches(
            RayScorer, batch_size=BATCH, compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1,
            fn_constructor_kwargs=arguments,
        )  # fmt: skip
        scored.drop_columns(["image"]).write_parquet(str(tmp_path / "scores"))
    finally:
        ray.shutdown()
    rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "scores").to_pylist()
    assert len(rows) == COUNT
    found = {row["id"]: (row["score"], row["decision"]) for row in rows}
    assert found == expected
