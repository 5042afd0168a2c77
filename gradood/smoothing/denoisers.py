"""One-shot diffusion denoisers: from a noisy input at exactly sigma to a clean one, in one step."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradood.arguments import checked
from gradood.errors import CheckpointError, InputError, ModelError
from gradood.results import Result

log = logging.getLogger("gradood")

Prediction = Literal["epsilon", "sample", "v_prediction"]

#: Share of sigma by which the noise that the network expects may be off without a warning.
_MISMATCH = 0.02


@dataclass(frozen=True)
class NoiseLevel(Result):
    """The first step of a diffusion with no less than some noise; the last if there is none.

    Attributes:
        timestep: T, from 0 on.
        sigma: Standard deviation of the noise that the network expects at t, in user units.
        mismatch: ``sigma`` minus that of the noise which is there.
    """

    timestep: int
    sigma: float
    mismatch: float


@checked
class EpsDenoiser(nn.Module):
    r"""A diffusion network as ``denoiser(noisy, sigma)``, one step, in units of the input.

    z = x + sigma Z with x in [0, 1], a network for pixels in [low, high], and w = high - low::

        t   = the first with sqrt(1 - abar_t) / sqrt(abar_t) >= w sigma
        x_t = sqrt(abar_t) (low + w z)
        x_0 = (x_t - sqrt(1 - abar_t) f(x_t, t)) / sqrt(abar_t)     epsilon
            = f(x_t, t)                                             sample
            = sqrt(abar_t) x_t - sqrt(1 - abar_t) f(x_t, t)         v_prediction

    clamped to [low, high] and mapped back to [0, 1] (Carlini et al., "(Certified!!) adversarial
    robustness for free!", 2022, algorithm 1). **No noise is added**: whoever certifies has added
    it, once, at exactly sigma. The network expects the noise of a step of its schedule; how far
    that is off is in ``level(sigma).mismatch``, and does not touch soundness: the certificate is
    about the network as it is run. Channels beyond those of the input, a learned variance, are
    dropped.

    The network runs in its own precision (``denoiser.to(torch.bfloat16)`` changes it) and the
    formulas in float32; the result has the type of the input. Weights, schedule and options are
    part of every certificate, see ``extra_repr``.

    Args:
        net: ``(x_t [N, C, ...], t [N]) -> [N, C or 2 C, ...]``, or an object with that as
            ``.sample``, as diffusers returns it. In eval mode, or certificates vary.
        alphas_cumprod: ``[T]``, abar of step t at t.
        prediction_type: What the network predicts.
        input_range: What pixels 0 and 1 are for the network.
        timestep_scale: Steps are multiplied by this for the network.

    Raises:
        InputError: ``alphas_cumprod`` is no decreasing sequence in [0, 1], or an option is unknown.

    Example:
        >>> import torch
        >>> blank = torch.nn.Module()
        >>> blank.forward = lambda x, t: torch.zeros_like(x)
        >>> denoiser = EpsDenoiser(blank, torch.linspace(0.99, 0.01, 100))
        >>> denoiser.level(0.5).timestep
        50
    """

    def __init__(
        self,
        net: nn.Module,
        alphas_cumprod: Tensor,
        *,
        prediction_type: Prediction = "epsilon",
        input_range: tuple[float, float] = (-1.0, 1.0),
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not input_range[0] < input_range[1]:
            raise InputError(f"input_range = {input_range}; expected (low, high) with low < high")
        self.net = net
        self.prediction_type, self.timestep_scale = prediction_type, timestep_scale
        self.input_range = input_range
        # No buffer: a change of the network's precision must not round the schedule.
        self.alphas_cumprod = _checked_schedule(alphas_cumprod)

    def level(self, sigma: float) -> NoiseLevel:
        """The step for noise of standard deviation ``sigma``, in user units."""
        if not (math.isfinite(sigma) and sigma > 0):
            raise InputError(f"sigma = {sigma}; expected a positive number")
        width = self.input_range[1] - self.input_range[0]
        kept = self.alphas_cumprod
        sigmas = ((1 - kept) / kept).sqrt() / width
        step = min(int((sigmas < sigma).sum()), len(sigmas) - 1)
        return NoiseLevel(step, float(sigmas[step]), float(sigmas[step]) - sigma)

    def forward(self, noisy: Tensor, sigma: float) -> Tensor:
        """The clean input ``[N, C, ...]`` in [0, 1] that the network sees in ``noisy``."""
        step = self.level(sigma)
        if abs(step.mismatch) > _MISMATCH * sigma:
            _warn_once(step, sigma)
        low, high = self.input_range
        kept = float(self.alphas_cumprod[step.timestep])
        scale, noise = math.sqrt(kept), math.sqrt(1 - kept)
        x_t = scale * (low + (high - low) * noisy.float())
        predicted = self._predict(x_t, step.timestep)
        if self.prediction_type == "epsilon":
            clean = (x_t - noise * predicted) / scale
        elif self.prediction_type == "v_prediction":
            clean = scale * x_t - noise * predicted
        else:
            clean = predicted
        return ((clean.clamp(low, high) - low) / (high - low)).to(noisy.dtype)

    def _predict(self, x_t: Tensor, step: int) -> Tensor:
        """The network's prediction, float32, without a learned variance."""
        whole = float(self.timestep_scale).is_integer()
        kind = torch.int64 if whole else torch.float32
        steps = torch.full((len(x_t),), step * self.timestep_scale, dtype=kind, device=x_t.device)
        weight = next(self.net.parameters(), x_t)
        result = self.net(x_t.to(weight.dtype), steps)
        result = getattr(result, "sample", result)
        shapes = [x_t.shape[:1] + (k * x_t.shape[1],) + x_t.shape[2:] for k in (1, 2)]
        if not isinstance(result, Tensor) or result.shape not in shapes:
            found = list(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ModelError(
                f"the denoising network gave {found} for {list(x_t.shape)}; expected the same "
                "shape, or twice the channels where it predicts a variance"
            )
        return result[:, : x_t.shape[1]].float()

    def extra_repr(self) -> str:
        """Options, and a hash of the schedule: what certificates record beside the weights."""
        schedule = hashlib.blake2b(self.alphas_cumprod.numpy().tobytes(), digest_size=4)
        return (
            f"{self.prediction_type}, input_range={self.input_range}, timestep_scale="
            f"{self.timestep_scale:g}, steps={len(self.alphas_cumprod)}, "
            f"schedule={schedule.hexdigest()}"
        )


@checked
def from_diffusers(
    unet: nn.Module, scheduler: Any, *, input_range: tuple[float, float] = (-1.0, 1.0)
) -> EpsDenoiser:
    """A denoiser from objects of the package diffusers: ``pred_original_sample`` of its step.

    Args:
        unet: An unconditional model such as ``UNet2DModel``, in eval mode.
        scheduler: With ``alphas_cumprod`` and ``config.prediction_type``: ``DDPMScheduler``,
            ``DDIMScheduler`` and others for discrete steps, of any schedule.
        input_range: What pixels 0 and 1 are for the network.

    Raises:
        InputError: The scheduler has no ``alphas_cumprod``, or predicts something else.

    Example:
        >>> from diffusers import DDPMPipeline                        # doctest: +SKIP
        >>> pipeline = DDPMPipeline.from_pretrained("folder")         # doctest: +SKIP
        >>> denoiser = from_diffusers(pipeline.unet, pipeline.scheduler)  # doctest: +SKIP
    """
    schedule = getattr(scheduler, "alphas_cumprod", None)
    if schedule is None:
        raise InputError(
            f"{type(scheduler).__name__} has no alphas_cumprod; expected a scheduler of discrete "
            "steps such as diffusers.DDPMScheduler or DDIMScheduler"
        )
    predicted: Prediction = getattr(scheduler.config, "prediction_type", "epsilon")
    return EpsDenoiser(unet, schedule, prediction_type=predicted, input_range=input_range)


@checked
def from_openai(
    net: nn.Module,
    state: Mapping[str, Tensor],
    *,
    steps: int = 4000,
    schedule: Literal["cosine", "linear"] = "cosine",
    rescale_timesteps: bool = True,
) -> EpsDenoiser:
    """A denoiser from weights of openai's improved-diffusion or guided-diffusion.

    Args:
        net: Their ``UNetModel``, or yours with the same parameters: ``(x, t) -> epsilon``, with the
            variance after it if it was learned.
        state: What ``torch.load(path, weights_only=True)`` gives. ``module.`` before every name, of
            a model saved in parallel, is dropped.
        steps: T of the training.
        schedule: Its ``noise_schedule``.
        rescale_timesteps: Its option of the same name: the network was given ``1000 t / T``.

    Raises:
        CheckpointError: The weights do not fit the network.
        InputError: The schedule is unknown.
    """
    names = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        net.load_state_dict(names)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit {type(net).__name__}: {error}") from error
    scale = 1000 / steps if rescale_timesteps else 1.0
    return EpsDenoiser(net.eval(), openai_schedule(steps, schedule), timestep_scale=scale)


def openai_schedule(steps: int, schedule: str = "cosine") -> Tensor:
    """``alphas_cumprod`` of openai's two schedules, float64 ``[steps]``.

    cosine: abar(u) proportional to ``cos(pi/2 (u + .008) / 1.008)^2``, every beta at most .999
    (Nichol and Dhariwal 2021, equation 17); linear: betas from ``.1 / steps`` to ``20 / steps`` (Ho
    et al. 2020 at 1000 steps).

    Raises:
        InputError: Another name, or no steps.
    """
    if steps < 1:
        raise InputError(f"steps = {steps}; expected a positive integer")
    if schedule == "linear":
        beta = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64, device="cpu")
    elif schedule == "cosine":
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")
        height = (math.pi / 2 * (u + 0.008) / 1.008).cos().square()
        beta = (1 - height[1:] / height[:-1]).clamp(max=0.999)
    else:
        raise InputError(f'schedule = {schedule!r}; expected "cosine" or "linear"')
    return (1 - beta).cumprod(0)


def _checked_schedule(alphas_cumprod: Tensor) -> Tensor:
    schedule = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").detach()
    good = schedule.dim() == 1 and len(schedule) > 0 and bool(schedule.diff().lt(0).all())
    if not (good and 0 <= float(schedule[-1]) and float(schedule[0]) <= 1):
        raise InputError("alphas_cumprod must be [T], decreasing from at most 1 to at least 0")
    return schedule


_warned: set[tuple[int, float]] = set()


def _warn_once(step: NoiseLevel, sigma: float) -> None:
    if (step.timestep, sigma) not in _warned:
        _warned.add((step.timestep, sigma))
        log.warning(
            "no step of the diffusion has noise %g; step %d expects %g. Certificates hold, but "
            "the denoiser may be poor there.",
            sigma, step.timestep, step.sigma,
        )  # fmt: skip
