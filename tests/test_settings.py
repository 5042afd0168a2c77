"""Process-wide settings of PyTorch change no result, and no result changes them."""

import ast
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import gradood
from gradood import attacks
from gradood.data import embedded_classifier, embedded_images
from gradood.distro import embedded_discriminator

SOURCE = Path(gradood.__file__).parent


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name):
    before = torch.get_default_device()
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SETTINGS = {
    "default dtype float64": lambda: default_dtype(torch.float64),
    "default dtype bfloat16": lambda: default_dtype(torch.bfloat16),
    "default dtype float16": lambda: default_dtype(torch.float16),
    "default device meta": lambda: default_device("meta"),
    "deterministic algorithms": deterministic,
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "two threads": lambda: threads(2),
}


def state():
    """Everything that a call could leave changed."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "random": torch.get_rng_state().tolist(),
    }


class Tokens(nn.Module):
    """Embeddings, a recurrent layer, attention, norms, dropout: random numbers and many rules."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.scale = nn.PReLU()
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.table(x)
        x = self.norm(x + self.attention(x, x, x)[0])
        return self.head(self.scale(x).mean(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.GroupNorm(2, 6))
    pool = (nn.Conv2d(6, 6, 3, groups=6), nn.AvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, *pool, nn.Linear(54, 3)).eval()


@pytest.fixture(scope="module")
def tokens():
    torch.manual_seed(0)
    return Tokens().eval(), torch.randint(0, 50, (4, 7))


@pytest.fixture(scope="module")
def x():
    return torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


SMOOTHING = gradood.Smoothing(sigma=0.1, n=40, seed=0, progress=False)


def norms(model, tokens, x):
    labels = ["all_hot", "predicted", "k_hot:2", "uniform"]
    found = gradood.gradient_norms(model, x, label=labels)
    other = gradood.gradient_norms(*tokens)
    by_vmap = gradood.gradient_norms(model, x[:3], method="vmap")
    by_loop = gradood.gradient_norms(model, x[:3], method="loop")
    return [n.values for n in (found, other, by_vmap, by_loop)] + [found.logits, found.features]


def grams(model, tokens, x):
    return [gradood.gradient_grams(model, x[:5]).values]


def slopes(model, tokens, x):
    detector = gradood.GradientKNN(model).fit(x)
    with torch.inference_mode(False), torch.enable_grad():
        point = x[:3].clone().requires_grad_()
        score = detector.differentiable_score(point)
        return [score.detach(), torch.autograd.grad(score.sum(), point)[0]]


def detectors(model, tokens, x, folder):
    scores = []
    for name, detector in {
        "fast": gradood.GradientDetector(model),
        "adversarial": gradood.GradientDetector(model, preset="adversarial"),
        "mahalanobis": gradood.GradientMahalanobis(model),
        "knn": gradood.GradientKNN(model),
        "gmm": gradood.GradientGMM(model, components=2),
        "energy": gradood.Energy(model),
        "softmax": gradood.MaxSoftmax(model),
        "gradnorm": gradood.GradNorm(model),
        "exgrad": gradood.ExGrad(model),
        "uncertainty": gradood.GradUncertainty(model),
    }.items():
        detector.fit(x)
        detector.calibrate(x, fpr=0.1)
        detector.save(folder / f"{name}.safetensors")
        loaded = gradood.load(folder / f"{name}.safetensors", model)
        scores += [detector.score(1.5 * x), loaded.score(1.5 * x), loaded.predict(x).float()]
    return scores


def trained(model, tokens, x):
    detector = gradood.ConfoundingDetector(model).fit(x, 1.5 * x)
    return [detector.score(x)]


def certificates(model, tokens, x):
    few, detector = x[:3], gradood.GradientKNN(model, parameters="*.weight").fit(x)
    by_class = gradood.certify_class(model, few, settings=SMOOTHING)
    quantile = gradood.certify_quantile(detector, few, settings=SMOOTHING, radius=[0.0, 0.02])
    decision = gradood.certify_decision(gradood.Energy(model).fit(x).calibrate(x, fpr=0.1), few,
                                        settings=SMOOTHING, radius=0.01)  # fmt: skip
    return [by_class.radius, by_class.samples, quantile.upper, decision.decision.double()]


def attacked(model, tokens, x):
    labels = model(x[:4]).argmax(1)
    found = attacks.pgd(model, x[:4], labels=labels)
    return [found.success.float(), found.images]


def embedded(model, tokens, x):
    pictures = embedded_images("mnist")[:5]
    classifier, discriminator = embedded_classifier(), embedded_discriminator()
    kept = [*classifier.state_dict().values(), *discriminator.state_dict().values()]
    return [pictures, classifier(pictures).detach(), discriminator(pictures).detach(), *kept]


CALLS = {f.__name__: f for f in (norms, grams, slopes, trained, certificates, attacked, embedded)}


def run(name, arguments, folder):
    """What a call gives and whether it leaves everything as it was."""
    before = state()
    found = detectors(*arguments, folder) if name == "detectors" else CALLS[name](*arguments)
    assert state() == before
    return found


@pytest.fixture(scope="module")
def usual(model, tokens, x, tmp_path_factory):
    """A function: the results of a call under no special settings."""

    @cache
    def find(name):
        return run(name, (model, tokens, x), tmp_path_factory.mktemp("usual"))

    return find


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", [*CALLS, "detectors"])
def test_results_do_not_depend_on(setting, name, model, tokens, x, usual, tmp_path):
    expected = usual(name)
    with SETTINGS[setting]():
        found = run(name, (model, tokens, x), tmp_path)
    for got, wanted in zip(found, expected, strict=True):
        assert got.dtype == wanted.dtype and got.device == wanted.device
        scale = float(wanted.double().nan_to_num(0, 0, 0).abs().max()) if wanted.numel() else 0.0
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


#: Factories whose dtype, device or both depend on settings unless they are given.
FACTORIES = {
    name: {"dtype", "device"}
    for name in (
        "arange empty empty_strided eye full linspace logspace normal ones rand randint randn "
        "randperm range scalar_tensor tensor zeros"
    ).split()
} | {"as_tensor": {"device"}, "asarray": {"device"}}


def careless(path):
    """Calls of factories in a file that leave something to a setting."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name)):
                missing = FACTORIES.get(name, set()) - {k.arg for k in node.keywords}
                if missing:
                    yield f"{path.name}:{node.lineno}: torch.{name} without {sorted(missing)}"


def test_no_tensor_is_made_with_a_dtype_or_device_by_default():
    found = [fault for path in sorted(SOURCE.rglob("*.py")) for fault in careless(path)]
    assert not found, "\n".join(found)


#: Of several matrices at once, wrong with two threads on some machines: see ``gradood selftest``.
BATCHED_LU = {"slogdet", "det", "logdet", "lu_factor", "lu", "inv", "inverse", "solve", "lu_solve"}


def test_no_lu_decomposition_of_several_matrices():
    for path in SOURCE.rglob("*.py"):
        if path.name == "arithmetic.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(value=ast.Attribute(attr="linalg"), attr=name):
                    assert name not in BATCHED_LU, f"{path.name}:{node.lineno}"
                case ast.Attribute(value=ast.Name(id="torch"), attr=name):
                    assert name not in BATCHED_LU, f"{path.name}:{node.lineno}"
