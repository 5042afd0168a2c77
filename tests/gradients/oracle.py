"""The specification of every test here: plain autograd, one sample at a time, in float64."""

import copy

import torch
from torch import nn
from torch.nn import functional


def bce(logits, label):
    return functional.binary_cross_entropy_with_logits(logits, label, reduction="sum")


#: What is promised of a norm, relative to itself: see ``gradient_norms``.
FLOAT64, FLOAT32 = 1e-9, 1e-5
#: Where a float32 loop is itself further off, this many times its error.
OF_THE_LOOP = 10
#: Of a sample's largest norm; what is smaller counts as zero.
NOTHING = 1e-10


def reference_norms(model, x, label=None, loss=bce, dtype=torch.float64):
    """Squared gradient norms [N, L] by a loop that shares nothing with the library.

    Every sample runs on a fresh copy of the model, beside a copy of itself that the loss ignores:
    the batch norm backward of PyTorch 2.14 is wrong for a batch of one.
    """
    rows = []
    for n in range(len(x)):
        fresh = copy.deepcopy(model).to(dtype)
        for p in fresh.parameters():
            p.requires_grad_()
        pair = x[[n, n]].to(dtype) if x.is_floating_point() else x[[n, n]]
        out = fresh(pair)
        logits = getattr(out, "logits", out)[:1]
        target = torch.ones_like(logits) if label is None else label[n : n + 1].to(dtype)
        gradients = torch.autograd.grad(
            loss(logits, target), list(fresh.parameters()), allow_unused=True
        )
        rows.append([0.0 if g is None else float(g.double().square().sum()) for g in gradients])
    return torch.tensor(rows, dtype=torch.float64)


def assert_as_promised(norms, model, x, label=None, loss=bce):
    """Every norm is right, relative to itself, as ``gradient_norms`` promises."""
    expected = reference_norms(model, x, label, loss)
    scale = expected.clamp_min(NOTHING * expected.amax(1, keepdim=True))

    def error(values):
        return ((values.double() - expected).abs() / scale).amax(0).nan_to_num(torch.inf)

    errors, promised = error(norms.values), FLOAT64
    if next(model.parameters()).dtype == torch.float32:
        promised = FLOAT32
        if errors.max() > FLOAT32:
            loop = error(reference_norms(model, x, label, loss, torch.float32))
            promised = (OF_THE_LOOP * loop).clamp_min(FLOAT32)
    worst = int(errors.argmax())
    assert (errors <= promised).all(), f"{norms.names[worst]}: {float(errors[worst]):.2e}"


def assert_norms(norms, expected, tolerance):
    """Compare by column, relative to the column's largest norm; true zeros may be rounding."""
    assert norms.values.shape == expected.shape
    scale = expected.amax(0).clamp_min(1e-14 * expected.max())
    error = (norms.values.double() - expected).abs() / scale
    worst = int(error.amax(0).argmax())
    assert error.max() <= tolerance, f"{norms.names[worst]}: {float(error.max()):.2e}"


def randomise(model, seed=0):
    """Give every parameter and statistic a generic value, so that no norm is zero by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            spread = float(p.std()) if p.numel() > 1 else 0.0
            noise = torch.randn(p.shape, generator=generator).to(p)
            p.add_(noise * max(0.1 * spread, 0.02))
        for module in model.modules():
            if (
                isinstance(module, nn.modules.batchnorm._BatchNorm)
                and module.running_var is not None
            ):
                shape = module.running_mean.shape
                module.running_mean.copy_(torch.randn(shape, generator=generator) * 0.1)
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
    return model


class _Slope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, slope):
        return torch.where(x < 0, x * slope, x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, d):
        x, slope = ctx.saved_tensors
        along_slope = torch.where(x < 0, d * x, 0)
        return torch.where(x < 0, d * slope, d), along_slope.sum_to_size(slope.shape)


class HiddenSlope(nn.Module):
    """``nn.PReLU`` in an operator that nobody sees, so that no rule covers its parameter."""

    def __init__(self, width=1):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 0.25))

    def forward(self, x):
        return _Slope.apply(x, self.weight)
