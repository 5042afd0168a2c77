"""Whole models on a GPU against the CPU, and everything around a pass: graphs, streams, devices.

Each item takes the device, so that the same code is tried on the CPU by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradood.benchmarking.operators import Check
from gradood.gradients import gradient_norms
from gradood.ops import reference

#: Relative error of a norm beside the CPU's, and relative to the largest norm of its sample: two
#: float32 passes through up to fifty layers, each within 1e-5 where rounding does not grow.
RELATIVE, OF_LARGEST = 1e-3, 1e-9


class Recurrent(nn.Module):
    """An LSTM over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(50, 32), nn.LSTM(32, 48, 2, batch_first=True)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 5]``."""
        out: Tensor = self.head(self.lstm(self.table(x))[0][:, -1])
        return out


def small_network() -> tuple[nn.Sequential, Tensor]:
    """A convolution, a norm and a linear layer, for what is not about sizes."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 7)]
    return nn.Sequential(*layers).eval(), torch.rand(4, 3, 8, 8, dtype=torch.float32, device="cpu")


def _vision(name: str) -> tuple[nn.Module, Tensor]:
    import torchvision

    torch.manual_seed(0)
    model: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=50).eval()
    return model, torch.rand(2, 3, 224, 224, dtype=torch.float32, device="cpu")


def _recurrent() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Recurrent().eval(), torch.randint(0, 50, (3, 17), dtype=torch.int64, device="cpu")


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-18": partial(_vision, "resnet18"),
    "ViT-B/16": partial(_vision, "vit_b_16"),
    "MobileNetV3": partial(_vision, "mobilenet_v3_small"),
    "LSTM": _recurrent,
}


def _norms(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    return gradient_norms(model, x, **options).values.cpu()


def _against(name: str, got: Tensor, wanted: Tensor, tolerance: float = RELATIVE) -> Check:
    floor = OF_LARGEST * wanted.amax(-1, keepdim=True)
    error = ((got - wanted).abs() / (wanted.abs() + floor)).max()
    return Check(name, bool(error < tolerance), f"relative error {float(error):.1e}")


def model_check(name: str, device: str) -> Iterator[Check]:
    """The norms of a whole model on the device against those of the CPU."""
    model, x = MODELS[name]()
    wanted = _norms(model, x)
    yield _against(f"model: {name}", _norms(model.to(device), x.to(device)), wanted)


def graph_check(device: str) -> Iterator[Check]:
    """Replays against passes, for other inputs, weights and attributes."""
    model, x = small_network()
    model, x = model.to(device), x.to(device)
    for step in range(3):
        wanted = _norms(model, x)
        yield _against(f"graph: replay {step}", _norms(model, x, cuda_graph=True), wanted)
        x = x.flip(0) * 0.5
        with torch.no_grad():
            for p in model[4].parameters():
                p.mul_(1.5)
    model[2] = nn.GELU()
    wanted = _norms(model, x)
    yield _against("graph: an edited model", _norms(model, x, cuda_graph=True), wanted)


def stream_check(device: str) -> Iterator[Check]:
    """The same norms from a stream that is not the default one."""
    model, x = small_network()
    model, x = model.to(device), x.to(device)
    wanted = _norms(model, x)
    side: AbstractContextManager[Any] = nullcontext()
    if device.startswith("cuda"):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        side = torch.cuda.stream(stream)
    with side:
        got = _norms(model, x)
    yield _against("side stream", got, wanted, 1e-6)


def second_device_check(device: str) -> Iterator[Check]:
    """The same norms on the second GPU while the first is current, and graphs on both."""
    if torch.cuda.device_count() < 2:
        yield Check("second device", True, "not there")
        return
    model, x = small_network()
    wanted = _norms(model, x)
    for place in ("cuda:0", "cuda:1"):
        there, batch = model.to(place), x.to(place)
        yield _against(f"device {place}", _norms(there, batch), wanted)
        yield _against(f"graph on {place}", _norms(there, batch, cuda_graph=True), wanted)


def autocast_check(device: str) -> Iterator[Check]:
    """Norms under autocast beside those in float32."""
    kind = torch.device(device).type
    for name in ("ViT-B/16",) if kind == "cuda" else ():
        model, x = MODELS[name]()
        wanted = _norms(model, x)
        with torch.autocast(kind, torch.bfloat16):
            got = _norms(model.to(device), x.to(device))
        yield _against(f"autocast: {name}", got, wanted, 0.5)
    model, x = small_network()
    wanted = _norms(model, x)
    with torch.autocast(kind, torch.bfloat16):
        got = _norms(model.to(device), x.to(device))
    yield _against("autocast: small network", got, wanted, 0.2)


def tf32_check(device: str) -> Iterator[Check]:
    """Exact norms whatever PyTorch's switches say, and what ``precision="fast"`` changes."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    model, x = small_network()
    wanted = _norms(model.double(), x.double())
    model, x = model.float().to(device), x.to(device)
    try:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("high")
        yield _against("TF32 is off inside a pass", _norms(model, x), wanted, 1e-5)
        fast = _against("", _norms(model, x, precision="fast"), wanted, 0.1)
        yield fast._replace(name='precision="fast"')
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


def noise_options_check(backend: Any, device: str) -> Iterator[Check]:
    """Clamped, normalised, cast and with channels innermost: every bit as it is defined."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 9, 7, generator=generator, dtype=torch.float32, device="cpu").to(device)
    rows = torch.tensor([0, 1, 1], dtype=torch.int64, device=device)
    key = torch.tensor([2**35 + 1, 1], dtype=torch.int64, device=device)
    mean = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float32, device=device)
    every: list[tuple[Any, ...]] = [
        (0.25, *limits, *channels, dtype, last)
        for limits in ((None, None), (0.0, 1.0), (0.0, None))
        for channels in ((None, None), (mean, mean + 1))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for last in (False, True)
    ]
    arguments: tuple[Any, ...] = (x, rows, rows + 7, rows + 2**31, key)
    for options in every:
        got = backend.noisy_batch(*arguments, *options)
        on_cpu: list[Any] = [
            a.cpu() if isinstance(a, Tensor) else a for a in (*arguments, *options)
        ]
        wanted = reference.noisy_batch(*on_cpu)
        wrong = int((got.cpu() != wanted).sum())
        _, low, high, centre, _, dtype, last = options
        kind = str(dtype).removeprefix("torch.") + ", normalised" * (centre is not None)
        layout = "channels last" if last else "planes"
        yield Check(
            f"noise, limits {low} and {high}, {kind}, {layout}",
            wrong == 0,
            f"{wrong} of {wanted.numel()} numbers differ",
        )
