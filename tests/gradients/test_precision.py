"""float32 is multiplied as such inside a pass, in every thread of it, and autocast as autograd."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import gradood
from gradood.errors import InputError, ModelError
from gradood.gradients import memory_bound, precision, recorder, scorer
from gradood.gradients.norms import assembled
from gradood.gradients.probe import Probe
from gradood.products import CHOSEN, products


@pytest.fixture
def fast_switches():
    """TF32 wherever PyTorch has a switch for it."""
    before = precision._read()
    SEEN.clear()
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    yield precision.switches()
    precision._write(before)


#: Not an attribute of the model, which gets back what it had before the pass.
SEEN = []


class Watching(nn.Module):
    """Notes the switches in forward and backward passes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        SEEN.append(state())
        out = self.head(x)
        if out.requires_grad:
            out.register_hook(lambda gradient: SEEN.append(state()))
        if len(x) > 7:
            raise ModelError("too many")
        return out


def state():
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


ENTRIES = {
    "norms": lambda model, x: gradood.gradient_norms(model, x),
    "fallback": lambda model, x: gradood.gradient_norms(model, x, method="loop"),
    "grams": lambda model, x: gradood.gradient_grams(model, x),
    "explain": lambda model, x: gradood.explain(model, x),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_tf32_is_off_inside_and_back_outside(entry, fast_switches):
    model = Watching().eval()
    ENTRIES[entry](model, torch.rand(5, 4))
    assert len(SEEN) > 2 and set(SEEN) == {(False, False)}
    assert precision.switches() == fast_switches


def test_switches_come_back_after_an_error(fast_switches):
    with pytest.raises(ModelError):
        gradood.gradient_norms(Watching().eval(), torch.rand(9, 4))
    assert precision.switches() == fast_switches


def test_fast_leaves_the_switches_and_says_so(fast_switches):
    model = Watching().eval()
    norms = gradood.gradient_norms(model, torch.rand(5, 4), precision="fast")
    assert set(SEEN) == {(True, True)} and norms.precision == "fast"
    exact = gradood.gradient_norms(model, torch.rand(5, 4))
    assert exact.precision == "exact"
    assert gradood.GradientNorms.join([exact, norms]).precision == "fast"
    with pytest.raises(InputError, match="half.*exact or fast"):
        gradood.gradient_norms(model, torch.rand(5, 4), precision="half")


def test_the_last_of_several_threads_puts_the_switches_back(fast_switches):
    inside, leave = threading.Event(), threading.Event()

    def long():
        with precision.multiplied("exact"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=long)
    thread.start()
    assert inside.wait(10)
    with precision.multiplied("exact"):
        pass
    assert state() == (False, False)  # the other pass still runs
    leave.set()
    thread.join()
    assert precision.switches() == fast_switches


@pytest.mark.skipif(not hasattr(torch._C, "_get_fp32_precision_getter"), reason="PyTorch < 2.9")
def test_switches_of_the_newer_kind_come_back_too():
    before = precision._read()
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cudnn.rnn.fp32_precision = "tf32"
        mixed = precision.switches()
        with precision.multiplied("exact"):
            assert torch.backends.cudnn.rnn.fp32_precision == "ieee"
            assert torch.backends.cudnn.allow_tf32 is False
        assert precision.switches() == mixed
    finally:
        torch.backends.cudnn.allow_tf32 = True
        precision._write(before)


def test_fast_multiplies_in_tf32():
    launch = pytest.importorskip("gradood.kernels.launch")
    if not launch.INTERPRETING:
        pytest.skip("depends on the GPU")
    with precision.multiplied("fast"):
        assert launch.product_precision(torch.float32, 1 << 20, cancels=True) == "tf32"
        assert launch.product_precision(torch.bfloat16, 1 << 20, cancels=True) == "ieee"


@pytest.mark.parametrize("takes_over", [False, True])
def test_the_context_reaches_hooks_in_threads_of_devices(takes_over, monkeypatch):
    """Autograd calls hooks of a GPU's operators from a thread of its own."""
    seen = []

    def in_a_thread(compute):
        def run(*args):
            result = []
            thread = threading.Thread(target=lambda: result.append(compute(*args)))
            thread.start()
            thread.join()
            return result[0]

        return run

    watch, rule = recorder.watch, nn.functional.linear
    monkeypatch.setattr(
        recorder, "watch", lambda out, anchor, hook, always: watch(out, anchor, in_a_thread(hook))
    )
    apply = recorder.TakenOver.apply
    monkeypatch.setattr(
        recorder.TakenOver, "apply", lambda x, compute, hook: apply(x, compute, in_a_thread(hook))
    )
    name = "batch_norm_backward_sqnorm" if takes_over else "linear_sqnorm"
    operator = getattr(gradood.ops, name)
    monkeypatch.setattr(
        gradood.ops, name, lambda *args: (seen.append(CHOSEN.get()), operator(*args))[1]
    )
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with products("tf32x3"):
        gradood.gradient_norms(model, torch.rand(5, 4))
    assert seen and set(seen) == {"tf32x3"}
    assert rule is nn.functional.linear


class Casting(nn.Module):
    """As after a layer norm on a GPU: autocast hands float32 to a linear layer."""

    def __init__(self, layer, shape):
        super().__init__()
        self.layer, self.shape = layer, shape

    def forward(self, x):
        return self.layer(x.float()).float().flatten(1)


CASTS = {
    "linear": (lambda: nn.Linear(40, 6), (3, 40)),
    "tokens": (lambda: nn.Linear(40, 3), (3, 9, 40)),
    "convolution": (lambda: nn.Conv2d(5, 4, 3), (3, 5, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(5, 4, 3), (3, 5, 4, 4)),
}


@pytest.mark.parametrize("name", CASTS)
def test_under_autocast_inputs_are_those_of_the_product(name):
    """Autograd multiplies d with x rounded to bfloat16, so the norms must, too."""
    torch.manual_seed(0)
    build, shape = CASTS[name]
    model, x = Casting(build(), shape).eval(), torch.rand(shape) + 0.3
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradood.gradient_norms(model, x.bfloat16().float()).values
        torch.testing.assert_close(gradood.gradient_norms(model, x).values, rounded, rtol=1e-6,
                                   atol=0)  # fmt: skip


def test_random_state_of_every_gpu_of_a_model_is_kept(monkeypatch):
    forked = []

    def fork(devices):
        forked.extend(devices)
        raise StopIteration

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    places = [torch.device("cuda", 1), torch.device("cpu"), torch.device("cuda", 0)]
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(device=d) for d in places])
    x = SimpleNamespace(device=torch.device("cuda", 2))
    with pytest.raises(RuntimeError), Probe(model, None, {})._surroundings(x):
        pass
    assert forked == [0, 1, 2]


def test_free_memory_does_not_depend_on_what_pytorch_has_cached(monkeypatch):
    x = SimpleNamespace(device=torch.device("cuda", 0))
    total, used = 80 << 30, 10 << 30
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)
    bounds = set()
    for reserved in (used, 40 << 30):
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device, r=reserved: r)
        free = (total - reserved, total)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, f=free: f)
        bounds.add(memory_bound.memory_bound(x))
    assert bounds == {35 << 30}


@pytest.mark.parametrize(("samples", "most"), [(256, 114), (7, 3), (5, 5), (9, 1), (1, 4)])
def test_micro_batches_are_balanced(samples, most):
    sizes = [len(range(samples)[part]) for part in scorer._parts(samples, most)]
    assert sum(sizes) == samples and max(sizes) <= most
    assert len(sizes) == -(-samples // most) and sizes[0] - sizes[-1] <= len(sizes)


def test_memory_written_in_place_counts_once():
    def bytes_a_sample(inplace):
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(288, 4)]
        model = nn.Sequential(*layers).eval()
        gradood.gradient_norms(model, torch.rand(4, 3, 8, 8))
        (plan,) = scorer._PLANS[model].values()
        return plan.bytes_per_sample

    assert bytes_a_sample(False) - bytes_a_sample(True) == 288 * 4


def test_norms_of_a_model_on_several_devices_come_together():
    elsewhere = torch.empty(2, 3, device="meta")
    norms = [{"first": torch.ones(2), "second": torch.ones(2, device="meta")}]
    names = ["first", "second", "unused"]
    assert assembled(norms, names, elsewhere).device.type == "meta"
