"""Train a small diffusion model on Fashion-MNIST, for one-shot denoising, and write it in float16.

python benchmarks/train_denoiser.py --output diffusion.safetensors
python benchmarks/train_denoiser.py --steps 1000 --tune diffusion.safetensors --output FILE

The second command makes ``gradood/data/assets/denoiser.safetensors``: it goes on with the first's
result, so that the embedded classifier says of a denoised picture what it says of the clean one.
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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets.fashion import fashion_mnist
from benchmarks.datasets.outliers import augmented, foreign_glyphs, textures
from gradood.data import embedded_classifier
from gradood.smoothing.patched_unet import PatchedUNet

log = logging.getLogger("gradood")
BATCH = 64
RATE = 2e-3
WARM_UP = 100
SIGMAS = (0.08, 1.3)
"""Noise levels in [0, 1] pixels that are trained: a little more than smoothing needs."""
TUNED_SIGMAS, TUNED_RATE, STABILITY = (0.02, 1.3), 4e-4, 0.3

DESCRIBED = ("command", "seconds_of_one_core")
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


class Task:
    """What is minimised: v's squared error, and when tuned the classifier's change of mind too.

    The second is the stability objective of denoised smoothing (Salman et al. 2020, arXiv
    2003.01908), ``KL(softmax f(x) || softmax f(denoised))``, on a quarter of outliers as well:
    else the denoiser would learn to paint what the classifier knows.
    """

    def __init__(self, root: Path | None, seed: int, tuned: bool) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.pixels = fashion_mnist("train", root).pixels
        self.scheduler = diffusers.DDPMScheduler(**SCHEDULER)
        self.alphas = self.scheduler.alphas_cumprod
        self.sigmas, self.rate = (TUNED_SIGMAS, TUNED_RATE) if tuned else (SIGMAS, RATE)
        self.classifier = embedded_classifier().requires_grad_(False) if tuned else None
        if tuned:
            sets = foreign_glyphs(seed=seed), textures(seed=seed)
            self.outliers = torch.cat([images.pixels for images in sets])

    def timesteps(self) -> Tensor:
        """Steps ``[BATCH]`` whose noise levels are uniform in log sigma."""
        ratio = (1 - self.alphas).sqrt() / self.alphas.sqrt()
        low, high = (math.log(2 * sigma) for sigma in self.sigmas)  # pixels in [-1, 1]
        wanted = low + (high - low) * torch.rand(BATCH, generator=self.draw)
        return torch.searchsorted(ratio.log(), wanted).clamp(max=len(ratio) - 1)

    def pictures(self) -> tuple[Tensor, int]:
        """``[BATCH, 1, 28, 28]`` in [0, 1], and how many of them are normal: those come first."""
        normal = BATCH if self.classifier is None else 3 * BATCH // 4
        x = self.pixels[torch.randint(len(self.pixels), (normal,), generator=self.draw)] / 255
        if normal == BATCH:
            return x, normal
        rows = torch.randint(len(self.outliers), (BATCH - normal,), generator=self.draw)
        return torch.cat([x, augmented(self.outliers[rows], self.draw)]), normal

    def loss(self, network: nn.Module) -> Tensor:
        """Of one batch; v's error weighs that of the clean picture by 1 + signal / noise."""
        x, normal = self.pictures()
        clean, step = 2 * x - 1, self.timesteps()
        noise = torch.randn(clean.shape, generator=self.draw)
        noisy = self.scheduler.add_noise(clean, noise, step)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = network(noisy, step).float()
        wanted = self.scheduler.get_velocity(clean, noise, step)
        loss = F.mse_loss(predicted[:normal], wanted[:normal])
        if self.classifier is None:
            return loss
        a = self.alphas[step].reshape(-1, 1, 1, 1)
        denoised = (a.sqrt() * noisy - (1 - a).sqrt() * predicted + 1) / 2
        before = self.classifier(x).log_softmax(1)
        after = self.classifier(denoised.clamp(0, 1)).log_softmax(1)
        change = F.kl_div(after, before, log_target=True, reduction="batchmean")
        return loss + STABILITY * change


def train(network: nn.Module, task: Task, steps: int) -> nn.Module:
    """AdamW with a cosine rate; the result is the moving average of the weights."""
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=task.rate, weight_decay=0.0)
    start, begin, recent = time.monotonic(), time.process_time(), 0.0
    for step in range(1, steps + 1):
        decay = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = task.rate * min(1.0, step / WARM_UP) * decay
        loss = task.loss(network)
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
    steps: Annotated[int, typer.Option(help="Of 64 pictures each.")] = 4000,
    tune: Annotated[
        Path | None, typer.Option(help="Go on with this one, for the embedded classifier.")
    ] = None,
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
    metadata: dict[str, object] = {}
    if tune is not None:
        with safe_open(tune, framework="pt") as file:
            metadata = {f"{key} of the first part": file.metadata()[key] for key in DESCRIBED}
            network.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})
    begin = time.process_time()
    average = train(network, Task(root, seed, tuned=tune is not None), steps)
    seconds = time.process_time() - begin
    # The paths are of no use to a reader, and may say whose machine it was.
    options = [part if "/" not in part else Path(part).name for part in sys.argv[1:]]
    metadata |= {
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
