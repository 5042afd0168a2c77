"""The CIFAR-10 suite: its network, its control, and its command on a few pictures."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.cifar.network import CifarResNet, load_network
from benchmarks.cifar.page import _failures, groups_of
from benchmarks.cifar.sets import CONTROL, anomalous_sets, control
from benchmarks.experiments.observations import Observer
from benchmarks.experiments.picture_peers import PicturePeers, pieces_of
from benchmarks.experiments.protocols import Study
from gradood.data import ImageSet
from gradood.errors import InputError
from tests.commands import run_module
from tests.pictures import needs_data


def test_a_network_is_what_its_weights_are(tmp_path):
    torch.manual_seed(0)
    network = CifarResNet(32, 7).eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    loaded, x = load_network(tmp_path / "weights.safetensors"), torch.rand(2, 3, 32, 32)
    assert len(loaded.layer1) == 5
    assert torch.equal(loaded(x), network(x)) and loaded(x).shape == (2, 7)


def test_the_pieces_of_a_network_make_its_logits():
    torch.manual_seed(0)
    network, x = CifarResNet(20).eval(), torch.rand(2, 3, 32, 32)
    pieces = pieces_of(network)
    torch.testing.assert_close(torch.nn.Sequential(*pieces.layers, pieces.head)(x), network(x))


def test_the_control_hardly_changes_a_picture():
    smooth = np.linspace(0, 255, 32, dtype=np.uint8)
    pixels = torch.from_numpy(np.broadcast_to(smooth, (2, 3, 32, 32)).copy())
    normal = ImageSet("normal", pixels, torch.arange(2), "CC0-1.0", "made")
    treated = control(normal).pixels
    difference = (treated.int() - pixels.int()).abs().float()
    assert treated.shape == pixels.shape
    assert 0 < difference.mean() < 4


def test_columns_keep_the_control_and_the_choice_apart():
    groups = groups_of(["cifar100-test", "tiny-imagenet", "svhn-test", "gtsrb", CONTROL])
    assert groups["all sets"] == ["cifar100-test", "tiny-imagenet", "svhn-test", "gtsrb"]
    assert groups["development"] == ["tiny-imagenet", "svhn-test"]
    assert groups["the others"] == ["cifar100-test", "gtsrb"]


def test_a_folder_without_sets_is_an_error(tmp_path):
    with pytest.raises(InputError, match="there is no"):
        anomalous_sets(tmp_path, 10)


def test_a_peer_that_does_not_run_is_named_even_after_an_interruption(tmp_path, monkeypatch):
    from pytorch_ood import detector

    def broken(*arguments, **options):
        raise ValueError("no such layer")

    monkeypatch.setattr(detector, "ASH", broken)
    torch.manual_seed(0)
    pixels, labels = torch.randint(256, (12, 3, 32, 32)).to(torch.uint8), torch.arange(12) % 10
    others = ("Gram", "MultiMahalanobis", "NACUE", "ODIN", "RankFeat", "SCALE", "VRA")
    without = [f"pytorch-ood {name}" for name in others]
    for _ in range(2):  # the second finds everything in the cache
        observer = Observer(CifarResNet(8).eval(), 10, tmp_path)
        readers = PicturePeers(observer, pixels, labels, without)
        assert list(readers.peers()) == ["pytorch-ood ReAct"]
        assert readers.failed == {"pytorch-ood ASH": "ValueError: no such layer"}
    study = Study(observer, "resnet8", 0)
    study.failed = readers.failed
    told = _failures(study.failures())
    assert told.endswith("pytorch-ood ASH on resnet8 (ValueError: no such layer).")
    assert _failures([]) == ""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_data
def test_the_command_writes_its_page(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for path in Path(os.environ["GRADOOD_DATA"]).iterdir():
        if "imagenet-samples" not in path.name:
            (data / path.name).symlink_to(path)
    options = "--network resnet20 --fit 300 --seeds 1 --count 40 --normal 80 --attacked 4"
    places = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--output", str(tmp_path)]
    run_module("benchmarks.cifar", *options.split(), *places)
    page = (tmp_path / "cifar.md").read_text(encoding="utf-8")
    for name in ('GradientDetector "forward"', "pytorch-ood ODIN", "pytorch-ood Gram", CONTROL):
        assert name in page
