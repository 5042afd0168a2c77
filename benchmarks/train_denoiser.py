"""Train a small diffusion model on Fashion-MNIST, for one-shot denoising, and write it in float16.

python benchmarks/train_denoiser.py --output gradood/data/assets/denoiser.safetensors
"""

import copy
import json
import logging
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import diffusers
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from gradood.data.denoiser import PatchedUNet
from gradood.data.fashion import fashion_mnist

log = logging.getLogger("gradood")
BATCH = 64
RATE = 2e-3
WARM_UP = 100
SIGMAS = (0.08, 1.3)
"""Noise levels in [0, 1] pixels that are trained: a little more than smoothing needs."""

UNET = {
    "sample_size": 14,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [24, 56],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
    "norm_num_groups": 8,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


def timesteps(scheduler: diffusers.DDPMScheduler, generator: torch.Generator) -> Tensor:
    """Steps ``[BATCH]`` whose noise levels are uniform in log sigma, within ``SIGMAS``."""
    ratio = (1 - scheduler.alphas_cumprod).sqrt() / scheduler.alphas_cumprod.sqrt()
    low, high = (math.log(2 * sigma) for sigma in SIGMAS)  # pixels in [-1, 1]
    wanted = low + (high - low) * torch.rand(BATCH, generator=generator)
    return torch.searchsorted(ratio.log(), wanted).clamp(max=len(ratio) - 1)


def loss_of(
    network: nn.Module, pixels: Tensor, scheduler: diffusers.DDPMScheduler, draw: torch.Generator
) -> Tensor:
    """Squared error of v: that of the clean picture, weighted by 1 + signal / noise."""
    clean = pixels.float() / 127.5 - 1
    step = timesteps(scheduler, draw)
    noise = torch.randn(clean.shape, generator=draw)
    noisy = scheduler.add_noise(clean, noise, step)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = network(noisy, step)
    return F.mse_loss(predicted.float(), scheduler.get_velocity(clean, noise, step))


def train(network: nn.Module, pixels: Tensor, steps: int, seed: int) -> nn.Module:
    """AdamW with a cosine rate; the result is the moving average of the weights."""
    draw = torch.Generator().manual_seed(seed)
    scheduler = diffusers.DDPMScheduler(**SCHEDULER)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0)
    start, begin, recent = time.monotonic(), time.process_time(), 0.0
    for step in range(1, steps + 1):
        decay = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, step / WARM_UP) * decay
        rows = torch.randint(len(pixels), (BATCH,), generator=draw)
        loss = loss_of(network, pixels[rows], scheduler, draw)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, max(0.005, 9 / (10 + step)))
        recent += loss.item()
        if step % 50 == 0:
            log.info(
                "step %d/%d: loss %.4f, %.0f s, %.0f s of one core",
                step, steps, recent / 50, time.monotonic() - start, time.process_time() - begin,
            )  # fmt: skip
            recent = 0.0
    return average


def main(
    output: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    steps: Annotated[int, typer.Option(help="Of 64 pictures each.")] = 1000,
    seed: int = 0,
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
    threads: Annotated[int, typer.Option(help="torch.set_num_threads")] = 1,
) -> None:
    """Train one denoiser and write it with its configuration, command and seed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    network = PatchedUNet(UNET)
    log.info("%d parameters", sum(p.numel() for p in network.parameters()))
    begin = time.process_time()
    average = train(network, fashion_mnist("train", root).pixels, steps, seed)
    seconds = time.process_time() - begin
    # The paths are of no use to a reader, and may say whose machine it was.
    options = [part if "/" not in part else Path(part).name for part in sys.argv[1:]]
    metadata = {
        "command": shlex.join(["python", "benchmarks/train_denoiser.py", *options]),
        "unet": json.dumps(UNET),
        "scheduler": json.dumps(SCHEDULER),
        "steps": steps,
        "seed": seed,
        "seconds_of_one_core": f"{seconds:.0f}",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    tensors = {name: tensor.half().contiguous() for name, tensor in average.state_dict().items()}
    save_file(tensors, output, {key: str(value) for key, value in metadata.items()})
    log.info("%s: %.0f s of one core", output, seconds)


if __name__ == "__main__":
    typer.run(main)
