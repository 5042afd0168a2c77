"""The options of the fast path change the model that is certified, and say so."""

import pytest
import torch
from torch import nn

import gradood
from gradood.errors import InputError, ModelError
from gradood.smoothing.inference import Certified, fingerprint, fold_batch_norm


def randomised(model):
    """Batch statistics that folding must get right."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    "conv": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ),
    "norm first": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_folded_models_give_the_same_logits(name):
    model = randomised(MODELS[name]()).double()
    shape = (7, 2, 4, 4) if name == "conv" else (7, 4)
    x = torch.randn(shape, dtype=torch.float64)
    folded = fold_batch_norm(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    norms = [m for m in folded.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == (name == "norm first")
    assert len([m for m in model.modules() if "BatchNorm" in type(m).__name__]) == 1, "a copy"


def test_a_layer_that_is_used_twice_is_not_folded():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            hidden = self.layer(x)
            return self.norm(hidden) + hidden

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.layer(self.norm(self.layer(x)))

    class Repeated(Shared):
        def forward(self, x):
            return self.norm(self.norm(self.layer(x)))

    for kind in (Branches, Shared, Repeated):
        model = randomised(kind()).double()
        x = torch.randn(7, 4, dtype=torch.float64)
        torch.testing.assert_close(fold_batch_norm(model)(x), model(x))


def test_embedded_classifier_folds(classifier, pictures):
    folded = fold_batch_norm(classifier)
    assert not any("BatchNorm" in type(m).__name__ for m in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(pictures), classifier(pictures), rtol=1e-4, atol=1e-4)


def test_models_that_cannot_be_traced_say_so():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match="leave it off"):
        fold_batch_norm(Branching())


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"channels_last": True},
        {"fold_batch_norm": True},
        {"dtype": "bfloat16", "channels_last": True, "fold_batch_norm": True},
    ],
    ids=str,
)
def test_options_stand_in_the_certificate_and_leave_the_model_alone(classifier, pictures, options):
    before = fingerprint(classifier)
    smoothing = gradood.Smoothing(sigma=0.01, n=64, n0=32, **options)
    found = gradood.certify_class(classifier, pictures[3:5], settings=smoothing)
    plain = gradood.certify_class(
        classifier, pictures[3:5], settings=gradood.Smoothing(sigma=0.01, n=64)
    )
    assert found.label.tolist() == plain.label.tolist()
    for name, value in options.items():
        assert found.evidence.common["settings"][name] == value
    assert fingerprint(classifier) == before
    assert next(classifier.parameters()).dtype == torch.float32


def test_the_model_runs_in_the_precision_that_was_asked_for(pictures):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 2, 28)

        def forward(self, x):
            seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return self.layer(x).flatten(1)

    smoothing = gradood.Smoothing(sigma=0.1, n=64, dtype="bfloat16", channels_last=True)
    gradood.certify_class(Spy(), pictures[:1], settings=smoothing)
    assert set(seen) == {(torch.bfloat16, True)}


@pytest.mark.slow
def test_compiled_models_certify(classifier, pictures):
    smoothing = gradood.Smoothing(sigma=0.01, n=64, n0=32, compile=True)
    found = gradood.certify_class(classifier, pictures[3:4], settings=smoothing, radius=0.005)
    assert not found.abstained[0] and found.evidence.common["settings"]["compile"]


def test_what_a_cuda_graph_cannot_hold_is_refused(classifier, pictures):
    with pytest.raises(InputError, match="cuda_graph and compile exclude one another"):
        gradood.Smoothing(sigma=0.1, cuda_graph=True, compile=True)
    smoothing = gradood.Smoothing(sigma=0.1, n=64, cuda_graph=True)
    with pytest.raises(InputError, match="needs x on a CUDA device, not on cpu"):
        gradood.certify_class(classifier, pictures.cpu(), settings=smoothing)
    assert "cuda_graph" not in smoothing.as_json()  # it changes no certificate


class Looking(nn.Module):
    """Decides on the CPU."""

    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_replays_certify_the_same(classifier, pictures):
    classifier, pictures = classifier.cuda(), pictures[3:5].cuda()
    plain, graph = (
        gradood.Smoothing(sigma=0.01, n=64, seed=0, cuda_graph=on) for on in (False, True)
    )
    wanted = gradood.certify_class(classifier, pictures, settings=plain)
    got = gradood.certify_class(classifier, pictures, settings=graph)
    assert got.evidence.rows == wanted.evidence.rows
    with pytest.raises(ModelError, match="cannot be captured.*cuda_graph=False"):
        gradood.certify_class(Looking(), pictures, settings=graph)


@pytest.mark.parametrize("option", ["fold_batch_norm", "compile", "cuda_graph"])
def test_options_that_cannot_apply_are_refused(classifier, pictures, option):
    smoothing = gradood.Smoothing(sigma=0.1, **{option: True})
    with pytest.raises(InputError, match=f"{option} cannot be applied to plain callables"):
        gradood.certify_class(lambda x: x.flatten(1), pictures, settings=smoothing)
    with pytest.raises(InputError, match=f"{option} cannot be applied to detectors"):
        gradood.certify_quantile(gradood.Energy(classifier), pictures, settings=smoothing)


def test_fingerprints_know_weights_and_detectors(classifier):
    from gradood.data import embedded_classifier

    other = embedded_classifier()
    assert fingerprint(other) == fingerprint(classifier)
    with torch.no_grad():
        other.linear.bias[0] += 1e-6
    assert fingerprint(other) != fingerprint(classifier)
    assert fingerprint(gradood.Energy(classifier)) != fingerprint(gradood.Energy(other))


def test_outputs_of_other_packages_are_read():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    model = Certified(lambda x: Output(x), gradood.Smoothing(sigma=1.0), 2)
    assert torch.equal(model(torch.ones(2, 3)), torch.ones(2, 3))
