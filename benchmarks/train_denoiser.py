"""Train a small diffusion model for one-shot denoising, and write it in float16.

python -m benchmarks.train_denoiser --output diffusion.safetensors
python -m benchmarks.train_denoiser --steps 1000 --tune diffusion.safetensors --output FILE

The second command makes ``gradood/data/assets/denoiser.safetensors``: it goes on with the first's
result, so that the embedded classifier says of a denoised picture what it says of the clean one.
With ``--of cifar10 --data FOLDER`` the same two commands make
``benchmarks/checkpoints/cifar10-denoiser.safetensors``, for the public ResNet-20.

Every 200 steps, what there is is written to the output, and the state beside it: the same command
goes on from there.
"""

import copy
import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training_sets import TrainingSet, training_set
from gradood.smoothing.patched_unet import PatchedUNet

log = logging.getLogger("gradood")
BATCH, EVERY = 64, 200
WARM_UP = 100
DESCRIBED = ("command", "seconds_of_one_core")
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

    def __init__(self, data: TrainingSet, seed: int, tuned: bool) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        self.data = data
        self.scheduler = diffusers.DDPMScheduler(**SCHEDULER)
        self.alphas = self.scheduler.alphas_cumprod
        self.sigmas, self.rate, self.batch = data.sigmas, data.rate, BATCH
        self.classifier = None
        if tuned:
            self.sigmas, self.rate = data.tuned_sigmas, data.tuned_rate
            self.batch = data.tuned_batch
            self.classifier, self.outliers = data.classifier(), data.outliers()

    def timesteps(self) -> Tensor:
        """Steps ``[batch]`` whose noise levels are uniform in log sigma."""
        ratio = (1 - self.alphas).sqrt() / self.alphas.sqrt()
        low, high = (math.log(2 * sigma) for sigma in self.sigmas)  # pixels in [-1, 1]
        wanted = low + (high - low) * torch.rand(self.batch, generator=self.draw)
        return torch.searchsorted(ratio.log(), wanted).clamp(max=len(ratio) - 1)

    def pictures(self) -> tuple[Tensor, int]:
        """``[batch, C, H, W]`` in [0, 1], and how many of them are normal: those come first."""
        pixels, normal = (
            self.data.pixels,
            self.batch if self.classifier is None else 3 * self.batch // 4,
        )
        rows = torch.randint(len(pixels), (normal,), generator=self.draw)
        x = self.data.vary(pixels[rows], self.draw)
        if normal == self.batch:
            return x, normal
        rows = torch.randint(len(self.outliers), (self.batch - normal,), generator=self.draw)
        return torch.cat([x, self.data.vary_outliers(self.outliers[rows], self.draw)]), normal

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
        with torch.autocast("cpu", torch.bfloat16):
            before = self.classifier(x).float().log_softmax(1)
            after = self.classifier(denoised.clamp(0, 1)).float().log_softmax(1)
        change = F.kl_div(after, before, log_target=True, reduction="batchmean")
        return loss + self.data.stability * change


class Training:
    """AdamW with a cosine rate; the result is the moving average of the weights.

    Args:
        network: What is trained.
        task: What is minimised.
        steps: In all.
        state: Where everything that the next step depends on is kept; read if it is there.
    """

    def __init__(self, network: nn.Module, task: Task, steps: int, state: Path) -> None:
        self.network, self.task, self.steps, self.state = network, task, steps, state
        self.average = copy.deepcopy(network)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=task.rate, weight_decay=0.0)
        self.done, self.seconds = 0, 0.0
        if state.exists():
            self._read(torch.load(state, weights_only=True))

    def _read(self, kept: dict[str, Any]) -> None:
        self.network.load_state_dict(kept["network"])
        self.average.load_state_dict(kept["average"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.task.draw.set_state(kept["draw"])
        self.done, self.seconds = kept["done"], kept["seconds"]
        log.info("%s: goes on after step %d", self.state, self.done)

    def _keep(self) -> None:
        kept = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "draw": self.task.draw.get_state(),
            "done": self.done,
            "seconds": self.seconds,
        }
        part = self.state.with_name(self.state.name + ".part")
        torch.save(kept, part)
        part.replace(self.state)  # never half a state

    def _step(self) -> float:
        self.done += 1
        decay = 0.5 + 0.5 * math.cos(math.pi * self.done / self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.rate * min(1.0, self.done / WARM_UP) * decay
        loss = self.task.loss(self.network)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
            for kept, new in pairs:
                kept.lerp_(new, max(0.005, 9 / (10 + self.done)))
        return loss.item()

    def run(self, write: Callable[["Training"], None]) -> None:
        """All steps that are left; ``write`` is called every ``EVERY`` of them and at the end."""
        recent, begin = 0.0, time.process_time()
        while self.done < self.steps:
            recent += self._step()
            if self.done % 50 == 0:
                self.seconds += time.process_time() - begin
                begin = time.process_time()
                log.info(
                    "step %d/%d: loss %.4f, %.0f s of one core",
                    self.done, self.steps, recent / 50, self.seconds,
                )  # fmt: skip
                recent = 0.0
            if self.done % EVERY == 0:
                self._keep()
                write(self)
        self.seconds += time.process_time() - begin
        write(self)
        self.state.unlink(missing_ok=True)


def main(
    output: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    of: Annotated[str, typer.Option(help="The data: fashion-mnist or cifar10.")] = "fashion-mnist",
    steps: Annotated[int, typer.Option(help="Of 64 pictures each; see training_sets.")] = 4000,
    tune: Annotated[
        Path | None, typer.Option(help="Go on with this one, for the classifier's opinion.")
    ] = None,
    seed: int = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with the files of the set.")] = None,
    threads: Annotated[int, typer.Option(help="torch.set_num_threads")] = 1,
) -> None:
    """Train one denoiser and write it with its configuration, command and seed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    learned = training_set(of, data, seed)
    network = PatchedUNet(learned.unet)
    log.info("%d parameters", sum(p.numel() for p in network.parameters()))
    metadata: dict[str, object] = {}
    if tune is not None:
        with safe_open(tune, framework="pt") as file:
            metadata = {f"{key} of the first part": file.metadata()[key] for key in DESCRIBED}
            network.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})
    # The paths are of no use to a reader, and may say whose machine it was.
    options = [part if "/" not in part else Path(part).name for part in sys.argv[1:]]
    metadata |= {
        "command": shlex.join(["python", "-m", "benchmarks.train_denoiser", *options]),
        "unet": json.dumps(learned.unet),
        "scheduler": json.dumps(SCHEDULER),
        "seed": seed,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }

    def write(training: Training) -> None:
        now = {"steps": training.done, "seconds_of_one_core": f"{training.seconds:.0f}"}
        weights = training.average.state_dict()
        tensors = {name: tensor.half().contiguous() for name, tensor in weights.items()}
        save_file(tensors, output, {key: str(value) for key, value in (metadata | now).items()})

    task = Task(learned, seed, tuned=tune is not None)
    training = Training(network, task, steps, output.with_suffix(".state"))
    training.run(write)
    log.info("%s: %.0f s of one core", output, training.seconds)


if __name__ == "__main__":
    typer.run(main)
