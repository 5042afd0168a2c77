"""Denoisers give what diffusers gives, see noise once, and are part of certificates."""

import itertools
import logging

import pytest
import torch
from torch import nn

from gradood import EpsDenoiser, Smoothing, certify_class, from_diffusers, from_openai
from gradood.errors import CheckpointError, InputError, ModelError
from gradood.smoothing import read_records, verify, verify_with_model
from gradood.smoothing.denoisers import openai_schedule

diffusers = pytest.importorskip("diffusers")

KNOWN = {
    ("cosine", 4000): (573, 1158, 1984, 2809),
    ("cosine", 1000): (143, 289, 496, 702),
    ("linear", 1000): (70, 145, 259, 396),
}
DIFFUSERS_NAMES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


def tiny_unet(out_channels=1, seed=0):
    torch.manual_seed(seed)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=out_channels,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    ).eval()


class Recorder(nn.Module):
    """Predicts nothing, and keeps what it was given."""

    def forward(self, x, t):
        self.x, self.t = x, t
        return torch.zeros_like(x)


@pytest.fixture
def images():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("schedule, steps", KNOWN)
def test_known_steps(schedule, steps):
    denoiser = EpsDenoiser(nn.Identity(), openai_schedule(steps, schedule))
    levels = [denoiser.level(sigma) for sigma in (0.12, 0.25, 0.5, 1.0)]
    assert tuple(level.timestep for level in levels) == KNOWN[schedule, steps]
    for sigma, level in zip((0.12, 0.25, 0.5, 1.0), levels, strict=True):
        assert level.mismatch == pytest.approx(level.sigma - sigma)
        assert abs(level.mismatch) < 0.01 * sigma


@pytest.mark.parametrize("schedule", DIFFUSERS_NAMES)
def test_openai_schedules_are_those_of_diffusers(schedule):
    scheduler = diffusers.DDPMScheduler(beta_schedule=DIFFUSERS_NAMES[schedule])
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(openai_schedule(1000, schedule), expected, rtol=2e-4, atol=1e-8)


@pytest.mark.parametrize(
    "scheduler, schedule, prediction",
    [
        *itertools.product(
            ("DDPMScheduler", "DDIMScheduler"),
            ("squaredcos_cap_v2", "linear"),
            ("epsilon", "sample", "v_prediction"),
        )
    ],
)
@torch.no_grad()
def test_equals_the_original_sample_that_diffusers_predicts(
    images, scheduler, schedule, prediction
):
    unet = tiny_unet()
    stepper = getattr(diffusers, scheduler)(beta_schedule=schedule, prediction_type=prediction)
    stepper.set_timesteps(1000)
    denoiser = from_diffusers(unet, stepper)
    for sigma in (0.12, 0.5, 1.0):
        noisy = images + sigma * torch.randn(images.shape)
        step = denoiser.level(sigma).timestep
        x_t = stepper.alphas_cumprod[step].sqrt() * (2 * noisy - 1)
        expected = stepper.step(unet(x_t, step).sample, step, x_t).pred_original_sample
        assert expected.abs().lt(1).float().mean() > 0.1  # not all of it is clamped
        torch.testing.assert_close(denoiser(noisy, sigma), (expected + 1) / 2, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_learned_variance_is_dropped(images):
    unet = tiny_unet(out_channels=2)
    stepper = diffusers.DDPMScheduler(variance_type="learned_range")
    denoiser = from_diffusers(unet, stepper)
    step = denoiser.level(0.5).timestep
    x_t = stepper.alphas_cumprod[step].sqrt() * (2 * images - 1)
    expected = stepper.step(unet(x_t, step).sample, step, x_t).pred_original_sample
    torch.testing.assert_close(denoiser(images, 0.5), (expected + 1) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("low, high", [(-1.0, 1.0), (0.0, 1.0), (-2.0, 3.0)])
def test_the_network_sees_the_noise_that_is_there_and_no_more(images, low, high):
    """The published code adds noise in the denoiser again: sqrt(2) sigma where t says sigma."""
    recorder = Recorder()
    schedule = openai_schedule(1000)
    denoiser = EpsDenoiser(recorder, schedule, input_range=(low, high))
    noisy = images + 0.25 * torch.randn(images.shape)
    first, again = denoiser(noisy, 0.25), denoiser(noisy, 0.25)
    step = denoiser.level(0.25).timestep
    expected = schedule[step].sqrt() * (low + (high - low) * noisy.double())
    torch.testing.assert_close(recorder.x.double(), expected, rtol=1e-6, atol=1e-6)
    assert recorder.t.tolist() == [step] * 3 and recorder.t.dtype == torch.int64
    assert torch.equal(first, again)
    # A network that sees no noise returns what it was given, scaled back.
    torch.testing.assert_close(first, noisy.clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_noise_that_no_step_has_is_reported(images, caplog):
    denoiser = EpsDenoiser(Recorder(), openai_schedule(1000, "linear"))
    level = denoiser.level(200.0)
    assert level.timestep == 999 and level.mismatch == pytest.approx(level.sigma - 200)
    with caplog.at_level(logging.WARNING, "gradood"):
        denoiser(images, 200.0)
        denoiser(images, 200.0)
        denoiser(images, 0.25)
    assert len(caplog.records) == 1 and "999" in caplog.text


class OpenaiLike(Recorder):
    """Parameters and calls as in openai's UNetModel: epsilon, then a variance."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x, t):
        super().forward(x, t)
        return self.conv(x)


@torch.no_grad()
def test_openai_weights_in_a_module_of_ones_own(images):
    trained = OpenaiLike()
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    denoiser = from_openai(OpenaiLike(), state, steps=4000)
    clean = denoiser(images, 0.5)
    assert denoiser.net.t.tolist() == [1984 * 0.25] * 3
    kept = openai_schedule(4000)[1984].float()
    x_t = kept.sqrt() * (2 * images - 1)
    expected = (x_t - (1 - kept).sqrt() * trained(x_t, None)[:, :1]) / kept.sqrt()
    torch.testing.assert_close(clean, (expected.clamp(-1, 1) + 1) / 2, rtol=1e-5, atol=1e-5)
    with pytest.raises(CheckpointError, match="do not fit OpenaiLike"):
        from_openai(OpenaiLike(), {"conv.weight": torch.zeros(2, 1, 3, 3)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_precision_and_layout_of_smoothing(images, dtype, channels_last):
    """Noisy inputs come in the precision of the model, and the denoiser runs in its own."""
    denoiser = from_diffusers(tiny_unet(), diffusers.DDPMScheduler())
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    settings = Smoothing(
        sigma=0.25, n=50, n0=8, denoiser=denoiser, dtype=dtype, channels_last=channels_last
    )
    assert certify_class(model, images, settings=settings).samples.tolist() == [58] * 3
    seen = denoiser(images.to(getattr(torch, dtype)), 0.25)
    assert seen.dtype == getattr(torch, dtype)


@torch.no_grad()
def test_lower_precision_of_the_network_leaves_the_schedule_alone(images):
    denoiser = from_diffusers(tiny_unet(), diffusers.DDPMScheduler())
    level, exact = denoiser.level(0.25), denoiser(images, 0.25)
    denoiser.to(torch.bfloat16)
    assert denoiser.level(0.25) == level
    rounded = denoiser(images, 0.25)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_certificates_record_which_denoiser_they_are_of(images, tmp_path, prediction):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    stepper = diffusers.DDPMScheduler(prediction_type=prediction)
    settings = Smoothing(sigma=0.5, n=40, n0=8, denoiser=from_diffusers(tiny_unet(), stepper))
    made = certify_class(model, images, settings=settings, state=tmp_path / "state").evidence
    made.write(tmp_path / "certificates.jsonl")
    records = read_records(tmp_path / "certificates.jsonl")
    assert records[0]["settings"]["denoiser"].startswith(f"EpsDenoiser({prediction}, ")
    assert [verify(record) for record in records] == [None] * 3
    assert verify_with_model(records, model, images, settings=settings) == [None] * 3
    other = Smoothing(sigma=0.5, n=40, n0=8, denoiser=from_diffusers(tiny_unet(seed=1), stepper))
    problems = verify_with_model(records, model, images, settings=other)
    assert all("another denoiser" in problem for problem in problems)
    with pytest.raises(CheckpointError, match="denoiser"):
        certify_class(model, images, settings=other, state=tmp_path / "state")


def test_a_denoiser_that_changes_on_the_way_certifies_nothing(images):
    class Learning(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, t):
            self.weight.data += 1
            return x * self.weight

    denoiser = EpsDenoiser(Learning(), openai_schedule(1000))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match="changed"):
        certify_class(model, images, settings=Smoothing(sigma=0.25, n=20, denoiser=denoiser))


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: EpsDenoiser(Recorder(), torch.tensor([0.5, 0.6])), InputError, "decreasing"),
        (lambda: EpsDenoiser(Recorder(), torch.tensor([1.5, 0.6])), InputError, "decreasing"),
        (lambda: EpsDenoiser(Recorder(), openai_schedule(9), prediction_type="score"),
         InputError, "score"),
        (lambda: EpsDenoiser(Recorder(), openai_schedule(9), input_range=(1, 0)),
         InputError, "low"),
        (lambda: EpsDenoiser(Recorder(), openai_schedule(9)).level(0), InputError, "sigma"),
        (lambda: from_diffusers(Recorder(), diffusers.FlowMatchEulerDiscreteScheduler()),
         InputError, "alphas_cumprod"),
        (lambda: openai_schedule(9, "square"), InputError, "square"),
    ],
)  # fmt: skip
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_network_of_another_shape_and_batch_statistics_are_refused(images):
    class Wide(nn.Module):
        def forward(self, x, t):
            return torch.cat([x] * 3, 1)

    with pytest.raises(ModelError, match="twice the channels"):
        EpsDenoiser(Wide(), openai_schedule(9))(images, 0.5)
    batch_statistics = EpsDenoiser(nn.BatchNorm2d(1), openai_schedule(9))
    with pytest.raises(ModelError, match="statistics of the batch"):
        certify_class(nn.Flatten(), images, settings=Smoothing(sigma=1, denoiser=batch_statistics))
