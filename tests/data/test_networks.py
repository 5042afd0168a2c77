from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gradood.data import ResNet, load_classifier
from gradood.errors import CheckpointError, InputError


@pytest.mark.parametrize(
    ("depth", "width", "classes", "parameters"),
    [(8, 16, 10, 77_754), (20, 16, 10, 272_186), (8, 2, 7, 1_357), (14, 4, 3, None)],
)
def test_networks_have_the_sizes_asked_for(
    depth: int, width: int, classes: int, parameters: int | None
) -> None:
    network = ResNet(depth, width=width, classes=classes).eval()
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert network(x).shape == (3, classes)
    assert network.features(x).shape == (3, 4 * width)
    # The name counts the layers with weights on the longest path; projections run beside it.
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == depth
    if parameters is not None:
        assert sum(p.numel() for p in network.parameters()) == parameters


def test_logits_are_the_linear_layer_of_the_features() -> None:
    network = ResNet(8, width=4).eval()
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(x), network.linear(network.features(x)))


def test_normalisation_is_inside_and_made_of_buffers() -> None:
    network = ResNet(8, width=4, mean=0.25, std=0.5)
    assert dict(network.named_buffers())["normalise.mean"] == 0.25
    assert not any("normalise" in name for name, _ in network.named_parameters())
    torch.testing.assert_close(
        network.normalise(torch.tensor([0.25, 0.75])), torch.tensor([0.0, 1.0])
    )


@pytest.mark.parametrize("depth", [2, 9, 18])
def test_depth_must_fit_three_stages(depth: int) -> None:
    with pytest.raises(InputError, match="6 n"):
        ResNet(depth)


def test_width_must_be_positive() -> None:
    with pytest.raises(InputError, match="width = 0; expected at least 1"):
        ResNet(8, width=0)


def test_a_saved_network_comes_back_the_same_and_in_eval_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ResNet(8, width=4, classes=7)
    x = torch.rand(8, 1, 28, 28)
    network(x)  # moves the running statistics, which must be saved as well
    path = tmp_path / "network.safetensors"
    save_file(network.state_dict(), path, {"depth": "8", "width": "4", "classes": "7"})
    restored = load_classifier(path)
    assert not restored.training
    torch.testing.assert_close(restored(x), network.eval()(x))


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="Cannot read"):
        load_classifier(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(CheckpointError, match="Cannot read"):
        load_classifier(path)
    save_file(ResNet(8, width=4).state_dict(), path)
    with pytest.raises(CheckpointError, match="depth"):
        load_classifier(path)
    save_file(ResNet(8, width=4).state_dict(), path, {"depth": "8", "width": "8", "classes": "10"})
    with pytest.raises(CheckpointError, match="size mismatch"):
        load_classifier(path)
