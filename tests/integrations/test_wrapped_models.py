"""Models as they come: compiled, wrapped, adapted, quantised; exact, or an error that says why."""

import copy
import logging
import threading

import pytest
import torch
import torch.distributed as dist
from torch import nn

import gradood
from gradood.errors import InputError, ModelError
from gradood.gradients import differentiable_norms, explain, gradient_grams, gradient_norms
from tests.gradients.oracle import assert_norms, reference_norms

N = 6


def plain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def x():
    return torch.rand(N, 1, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(x):
    return reference_norms(plain(), x)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()


class Holds(nn.Module):
    """A module with the plain model inside."""

    def __init__(self):
        super().__init__()
        self.model = plain()

    def forward(self, x):
        return self.model(x)


def compiled(backend):
    return torch.compile(plain(), backend=backend)


def compiled_in_place(backend):
    model = plain()
    model.compile(backend=backend)
    return model


def compiled_layer(backend):
    model = plain()
    model[0] = torch.compile(model[0], backend=backend)
    return model


def compiled_layer_in_place(backend):
    model = plain()
    model[5].compile(backend=backend)
    return model


def compiled_method(backend):
    model = Holds().eval()
    model.forward = torch.compile(model.forward, backend=backend)
    return model


def compiled_function(backend):
    activate = torch.compile(lambda t: t.relu(), backend=backend)

    class Activates(nn.Module):
        def forward(self, x):
            return activate(x)

    model = plain()
    model[2] = Activates()
    return model.eval()


COMPILED = (compiled, compiled_in_place, compiled_layer, compiled_layer_in_place, compiled_method,
            compiled_function)  # fmt: skip


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("make", COMPILED, ids=lambda make: make.__name__)
def test_compiled_models_are_exact_and_covered(make, backend, x, expected):
    model = make(backend)
    with torch.no_grad():
        logits = model(x)  # compiled before it is scored
    norms = gradient_norms(model, x)
    assert_norms(norms, expected, 1e-4)
    torch.testing.assert_close(norms.logits, logits)
    assert not explain(model, x).fallbacks
    assert_norms(gradient_norms(model, x, method="loop"), expected, 1e-4)
    found = differentiable_norms(model, x)
    assert_norms(found, expected, 1e-4)
    assert torch.autograd.grad(found.values.sum(), list(model.parameters()), allow_unused=True)


def test_scoring_compiles_nothing_and_leaves_the_stance_alone(x):
    seen = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph

    model = torch.compile(plain(), backend=backend)
    gradient_norms(model, x)
    explain(model, x)
    assert not seen
    with torch.no_grad():
        model(x)
    assert len(seen) == 1


def test_threads_score_compiled_models_at_once(x, expected):
    models = [compiled("eager") for _ in range(3)]
    found = [None] * 3

    def score(i):
        for _ in range(3):
            found[i] = gradient_norms(models[i], x)

    threads = [threading.Thread(target=score, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for norms in found:
        assert_norms(norms, expected, 1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled("eager")(x), plain()(x))


def test_a_detector_goes_on_with_a_compiled_model(x, tmp_path):
    normal = torch.rand(60, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    detector = gradood.GradientKNN(plain()).fit(normal)
    detector.save(tmp_path / "d")
    for make in COMPILED:
        if make not in (compiled_method, compiled_function):  # of which names differ otherwise
            loaded = gradood.load(tmp_path / "d", make("eager"))
            torch.testing.assert_close(loaded.score(x), detector.score(x), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    place = tmp_path_factory.mktemp("gloo") / "init"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_data_parallel(x, expected, one_process):
    for model in (
        nn.DataParallel(plain()),
        nn.parallel.DistributedDataParallel(plain()).eval(),
    ):
        assert_norms(gradient_norms(model, x), expected, 1e-4)
        assert not explain(model, x).fallbacks


@pytest.mark.filterwarnings("ignore")
def test_opacus(x):
    opacus = pytest.importorskip("opacus.grad_sample")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4)).eval()
    expected = reference_norms(model, x)
    wrapped = opacus.GradSampleModule(copy.deepcopy(model)).eval()
    assert_norms(gradient_norms(wrapped, x), expected, 1e-4)
    assert wrapped.hooks_enabled
    assert all(p.grad_sample is None for p in wrapped.parameters())


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


@pytest.mark.filterwarnings("ignore")
def test_lora(x):
    peft = pytest.importorskip("peft")
    logging.getLogger("peft").setLevel(logging.ERROR)
    model = peft.get_peft_model(mlp(), peft.LoraConfig(r=4, target_modules=["1", "3"])).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    assert_norms(gradient_norms(model, x), reference_norms(model, x), 1e-4)
    assert not explain(model, x).fallbacks
    adapters = gradient_norms(model, x, parameters="*lora_*").values
    assert adapters.shape == (N, 4) and (adapters > 0).all()
    merged = copy.deepcopy(model).merge_and_unload()
    assert_norms(gradient_norms(merged, x), reference_norms(merged, x), 1e-4)


@pytest.mark.filterwarnings("ignore")
def test_weights_quantised_by_torchao_are_refused_and_the_others_exact(x):
    ao = pytest.importorskip("torchao.quantization")
    model = mlp()
    ao.quantize_(model, ao.Int8WeightOnlyConfig(), filter_fn=lambda module, name: name == "1")
    with pytest.raises(InputError, match=r"1\.weight.*quantised.*parameters="):
        gradient_norms(model, x)
    same = mlp()
    same[1].weight.data = model[1].weight.dequantize()
    norms = gradient_norms(model, x, parameters=["1.bias", "3.*"])
    assert_norms(norms, reference_norms(same, x)[:, 1:], 1e-4)


class NoGrad(Holds):
    def forward(self, x):
        with torch.no_grad():
            return self.model(x)


class InferenceMode(Holds):
    @torch.inference_mode()
    def forward(self, x):
        return self.model(x)


class Detached(Holds):
    def forward(self, x):
        return self.model(x).detach()


class Votes(Holds):
    def forward(self, x):
        return nn.functional.one_hot(self.model(x).argmax(1), 5).float()


class ThroughNumpy(Holds):
    def forward(self, x):
        return torch.from_numpy(self.model(x).detach().numpy())


class Unused(Holds):
    def forward(self, x):
        return x.flatten(1)[:, :5]


@pytest.mark.parametrize("method", ["auto", "loop", "vmap"])
@pytest.mark.parametrize("kind", [NoGrad, InferenceMode, Detached, Votes, ThroughNumpy, Unused])
@pytest.mark.parametrize("frozen", [False, True])
def test_no_gradient_at_all_is_an_error(kind, method, frozen, x):
    model = kind().eval().requires_grad_(not frozen)
    with pytest.raises(ModelError, match="no gradient with respect to any|cannot differentiate"):
        gradient_norms(model, x, method=method)
    if method == "auto":
        with pytest.raises(ModelError, match="no gradient with respect to any"):
            gradient_grams(model, x)


def test_what_is_unused_in_a_model_that_has_gradients_has_norm_zero(x):
    class HasDead(Holds):
        def __init__(self):
            super().__init__()
            self.dead = nn.Linear(3, 3)

    for frozen in (False, True):
        model = HasDead().eval().requires_grad_(not frozen)
        assert gradient_norms(model, x, parameters="dead.*").values.tolist() == [[0.0, 0.0]] * N
        assert all(p.requires_grad is not frozen for p in model.parameters())


@pytest.mark.filterwarnings("ignore")
def test_quantised_and_scripted_models_have_no_norms_but_scores_of_logits(x):
    quantised = torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})
    for model, message in (
        (quantised, "1 are quantised"),
        (torch.jit.script(mlp()), "TorchScript"),
        (torch.jit.trace(mlp(), x), "TorchScript"),
    ):
        with pytest.raises(ModelError, match=message):
            gradient_norms(model.eval(), x)
        assert gradood.MaxSoftmax(model).score(x).isfinite().all()


@pytest.mark.filterwarnings("ignore")
def test_a_model_quantised_in_part_or_statically_has_no_norms(x):
    part = torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})
    with pytest.raises(ModelError, match="quantised|depend on the other samples"):
        gradient_norms(part, x)
    static = nn.Sequential(
        torch.ao.quantization.QuantStub(), mlp(), torch.ao.quantization.DeQuantStub()
    ).eval()
    static.qconfig = torch.ao.quantization.get_default_qconfig("x86")
    torch.ao.quantization.prepare(static, inplace=True)
    static(x)
    torch.ao.quantization.convert(static, inplace=True)
    with pytest.raises(ModelError, match="quantised"):
        gradient_norms(static, x)
