"""The second paper's table on CIFAR-10: plain, outlier-exposed, discriminator, denoised, joint.

    OMP_NUM_THREADS=1 python -m benchmarks.papers.distro --data FOLDER [--workers 2]

FOLDER as for ``benchmarks.cifar``. Writes ``paper_distro.csv``, ``paper_distro_normal.csv``,
``paper_distro.md`` and ``.png``. Denoiser and discriminator are ``benchmarks/checkpoints``'s, which
``train_denoiser`` and ``train_discriminator`` made; ``--denoiser NAME`` takes another, as ``gradood
certify`` does: a folder of a diffusers pipeline, a file of ``train_denoiser``, or
``package.module:function``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from benchmarks.cifar.network import load_network
from benchmarks.datasets import picture_set
from benchmarks.distro import CHECKPOINTS
from benchmarks.distro_study import Model, Size, Study, run
from benchmarks.experiments.classifiers import CACHE
from benchmarks.experiments.observations import digest
from benchmarks.training_sets import halves
from gradood.data import ImageSet
from gradood.distro import load_discriminator
from gradood.scoring.denoisers import load_denoiser
from gradood.smoothing.patched_unet import load_denoiser as load_trained
from gradood.smoothing.settings import Denoiser

RESULTS = Path(__file__).parents[1] / "results"
SETS = ("cifar100-test", "svhn-test", "scenes", "textures")
SIGMAS = (0.12, 0.25)
#: What half an hour of one core allows.
USUAL = Size(
    normal=100,
    anomalous=40,
    votes=32,
    samples=128,
    afresh=50,
    steps=30,
    restarts=2,
    noises=2,
    certified=(0.12, 0.25, 0.5),
)
INTRODUCTION = """# The second paper's table, on CIFAR-10

Franco, Korth, Lorenz, Roscher, Günnemann, *Diffusion Denoised Smoothing for Certified and
Adversarial Robust Out-Of-Distribution Detection* (DISTRO), 2023, arXiv 2303.14961.

Made by `{command}`. Classifier: the public ResNet-20 of akamaster/pytorch_resnet_cifar10. Denoiser:
{denoiser}. The discriminator, and the outlier-exposed classifier where its checkpoint was there,
saw outliers of Tiny ImageNet and patterns by formula, which are not scored here, and of the half of
the textures that is not: for textures the outliers are of the same kind, for cifar100, svhn and
scenes they are not. Which outliers it saw, and for how long, was chosen after a look at AUROC on up
to 200 pictures of each scored set, and the denoiser after a look at accuracy on 500 test pictures,
so the figures are somewhat optimistic. The number after a model's name is its noise; slight noise
is 0.02. Normal:
{normal} test pictures; anomalous: {anomalous} pictures of each set.

What differs from the paper: its denoiser is a public diffusion model of fifty million parameters,
ours is small enough for one core, and so is the classifier: clean and certified accuracy are lower.
Its adversarial figures come from longer attacks; ours are weak on smoothed models. Its certificates
are computed otherwise: points without one count as detected there and as lost here. Of its figures
we had those of the abstract alone (the mean of all metrics rises by about 13 % on CIFAR-10), which
cannot be set beside this table.
"""


def models(data: Path, denoiser: Denoiser, sigmas: Sequence[float]) -> list[Model]:
    """The rows; those whose checkpoint is not there are left out."""
    plain = load_network(data / "weights/cifar10-resnet20.safetensors").requires_grad_(False)
    d = load_discriminator(CHECKPOINTS / "cifar10-discriminator.safetensors")
    rows = [Model("plain", plain)]
    if (exposed := CHECKPOINTS / "cifar10-exposed.safetensors").exists():
        rows += [Model("outlier-exposed", load_network(exposed).requires_grad_(False))]
    rows += [
        Model("discriminator", plain, d),
        Model(f"smoothed, {sigmas[0]:g}", plain, None, sigmas[0]),
    ]
    for sigma in sigmas:
        rows += [Model(f"denoised, {sigma:g}", plain, None, sigma, denoiser)]
        rows += [Model(f"joint, {sigma:g}", plain, d, sigma, denoiser)]
    return [*rows, Model("joint, slight noise", plain, d, 0.02, denoiser)]


def scored(data: Path, count: int) -> dict[str, ImageSet]:
    """Of the halves that nothing was trained on, drawn at random."""
    return {name: halves(picture_set(name, data))[1].sample(count) for name in SETS}


def main(
    data: Annotated[Path, typer.Option(help="Folder with the sets and weights/.")],
    denoiser: Annotated[str | None, typer.Option(help="In place of ours; see above.")] = None,
    normal: Annotated[int, typer.Option(help="Normal pictures.")] = USUAL.normal,
    anomalous: Annotated[int, typer.Option(help="Pictures a set.")] = USUAL.anomalous,
    accuracy: Annotated[int, typer.Option(help="Pictures for accuracy.")] = USUAL.accuracy,
    samples: Annotated[int, typer.Option(help="Noises a picture.")] = USUAL.samples,
    steps: Annotated[int, typer.Option(help="Of attacks through noise.")] = USUAL.noisy_steps,
    sigma: Annotated[list[float] | None, typer.Option(help="Noise levels.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    cache: Annotated[Path, typer.Option(help="Folder for what is computed.")] = CACHE,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = RESULTS,
) -> None:
    """Compute the table, and write it with its page and figure."""
    given = {"normal": normal, "anomalous": anomalous, "accuracy": accuracy, "samples": samples}
    size = USUAL._replace(**given, noisy_steps=steps)
    told = [f" --{name} {value}" for name, value in given.items() if value != _usual(name)]
    told += [] if steps == USUAL.noisy_steps else [f" --steps {steps}"]
    told += [f" --sigma {one:g}" for one in sigma or ()]
    told += [] if denoiser is None else [" --denoiser " + Path(denoiser).name]
    command = "OMP_NUM_THREADS=1 python -m benchmarks.papers.distro --data FOLDER" + "".join(told)
    rows = models(data, denoising(denoiser), sigma or SIGMAS)
    which = (
        "`benchmarks/checkpoints/cifar10-denoiser.safetensors`" if denoiser is None else denoiser
    )
    words = {"{command}": command, "{denoiser}": which}
    introduction = INTRODUCTION
    for word, meant in words.items():
        introduction = introduction.replace(word, meant)
    sets = {name: one.images for name, one in scored(data, anomalous).items()}
    test = picture_set("cifar10-test", data).sample(max(normal, accuracy))
    study = Study("paper_distro", rows, test, sets, size, introduction)
    run(study, out, cache / "papers" / f"distro-{_identity(rows, size)}", workers)


def denoising(name: str | None) -> Denoiser:
    """Ours in bfloat16, or that of a user as it is."""
    if name is None:
        return load_trained(CHECKPOINTS / "cifar10-denoiser.safetensors").bfloat16()
    found = load_denoiser(name, "cpu")
    assert found is not None
    return found


def _usual(name: str) -> Any:
    return USUAL._asdict()[name]


def _identity(rows: Sequence[Model], size: Size) -> str:
    """A name for weights and sizes: other models must not find these samples and attacks."""
    parts = [str((size, [(row.name, row.sigma) for row in rows])).encode()]
    for row in rows:
        for one in (row.classifier, row.discriminator, row.denoiser):
            if isinstance(one, nn.Module):
                weights = one.state_dict().values()
                parts += [t.float().numpy().tobytes() for t in weights]
            else:
                parts.append(repr(one).encode())
    return digest(parts)[:12]


if __name__ == "__main__":
    typer.run(main)
