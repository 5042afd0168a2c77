"""gradood inside pytorch-ood and OpenOOD, by their conventions."""

import inspect
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import gradood
from gradood.data import embedded_classifier, embedded_images, embedded_labels
from gradood.errors import InputError
from gradood.integrations.openood import openood_postprocessor
from gradood.integrations.pytorch_ood import pytorch_ood_detector


@pytest.fixture(scope="module")
def model():
    return embedded_classifier()


@pytest.fixture(scope="module")
def labelled():
    """Training and test data with labels: -1 marks the anomalies."""
    normal, mnist = embedded_images("fashion-mnist-train")[:200], embedded_images("mnist")
    test = embedded_images("fashion-mnist")[:60]
    train = TensorDataset(
        torch.cat([normal, mnist[:60]]), torch.cat([torch.arange(200) % 10, -torch.ones(60)]).long()
    )
    both = TensorDataset(
        torch.cat([test, mnist[60:120]]), torch.cat([torch.zeros(60), -torch.ones(60)]).long()
    )
    return train, both


DETECTORS = (gradood.GradientKNN, gradood.ConfoundingDetector, gradood.Energy)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of imports in pytorch-ood
@pytest.mark.parametrize("kind", DETECTORS, ids=lambda kind: kind.__name__)
def test_pytorch_ood_fits_scores_and_measures(model, labelled, kind):
    api = pytest.importorskip("pytorch_ood.api")
    from pytorch_ood.metrics import OODMetrics

    train, both = labelled
    made = pytorch_ood_detector(kind(model))
    assert isinstance(made, api.Detector)
    assert isinstance(made, api.GradientDetector) == (kind is not gradood.Energy)
    if kind is not gradood.Energy:
        with pytest.raises(api.RequiresFittingException):
            made.predict(both[:2][0])
    assert made.fit(DataLoader(train, batch_size=64, shuffle=False)) is made
    sources = [train.tensors[0][:200]] + ([train.tensors[0][200:]] if kind is DETECTORS[1] else [])
    expected = kind(model).fit(*sources).score(both.tensors[0])
    metrics = OODMetrics()
    scores = []
    for x, y in DataLoader(both, batch_size=50):
        scores.append(made(x))
        metrics.update(scores[-1], y)
    torch.testing.assert_close(torch.cat(scores), expected, rtol=1e-3, atol=1e-3)
    own = gradood.evaluate(expected[:60], expected[60:])
    theirs = metrics.compute()
    assert theirs["AUROC"] == pytest.approx(own.auroc, abs=0.01) and own.auroc > 0.8
    assert made.to("cpu").device == torch.device("cpu")
    if kind is not gradood.Energy:  # which reads nothing
        with pytest.raises(InputError, match=r"\(x, y\)"):
            made.fit([train.tensors[0]])


@pytest.mark.filterwarnings("ignore")
def test_pytorch_ood_sums_the_same_norms(model):
    detector = pytest.importorskip("pytorch_ood.detector")
    x = embedded_images("mnist")[:8]
    theirs = detector.GradUncertainty(model).predict(x)
    norms = gradood.gradient_norms(model, x, loss="bce_softmax").values
    torch.testing.assert_close(-norms.sum(1), theirs, rtol=1e-3, atol=1e-3)


def loader(x, y, size=32):
    return [{"data": a, "label": b} for a, b in zip(x.split(size), y.split(size), strict=True)]


@pytest.mark.parametrize(
    "kind",
    [DETECTORS[0], pytest.param(DETECTORS[1], marks=pytest.mark.slow)],
    ids=lambda kind: kind.__name__,
)
def test_openood_gets_predictions_and_confidences(model, labelled, kind):
    train, both = labelled
    x, y = both.tensors
    post = openood_postprocessor(kind)
    with pytest.raises(InputError, match="setup"):
        post.postprocess(model, x[:2])
    normal, anomalous = train.tensors[0][:200], train.tensors[0][200:]
    loaders = (
        {"train": loader(normal, train.tensors[1][:200])},
        {"val": loader(anomalous, train.tensors[1][200:])},
    )
    post.setup(model, *loaders)
    prediction, confidence, label = post.inference(model, loader(x, y), progress=False)
    assert prediction.dtype == int and label.tolist() == y.tolist()
    assert np.array_equal(prediction, model(x).argmax(1).numpy())
    # OpenOOD's confidence is high for normal inputs.
    found = gradood.evaluate(-confidence[:60], -confidence[60:])
    assert found.auroc > 0.8
    truth = embedded_labels("fashion-mnist")[:60].numpy()
    assert (prediction[:60] == truth).mean() > 0.8
    assert not post.APS_mode and post.hyperparam_search_done


def test_openood_needs_anomalies_for_the_detector_of_the_paper(model, labelled):
    train, _ = labelled
    post = openood_postprocessor(gradood.ConfoundingDetector)
    with pytest.raises(InputError, match="val"):
        post.setup(model, {"train": loader(*train.tensors)}, {})


def of_ours():
    """Every detector that is no base of others."""
    found, waiting = set(), [gradood.Detector]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if not inspect.isabstract(kind) and kind.__module__.startswith("gradood."):
            found.add(kind)
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", of_ours(), ids=lambda kind: kind.__name__)
def test_what_pytorch_ood_asks_of_every_detector_of_its_own(kind):
    """24 rows of 10 numbers and 3 classes in batches of 6 are enough to fit on; a call gives finite
    scores ``[B]``; its base class, ``requires_fit``, ``device`` and signatures say the truth.
    """
    api = pytest.importorskip("pytorch_ood.api")
    torch.manual_seed(123)
    x, y = torch.randn(24, 10), torch.arange(24) % 3
    if kind is gradood.ConfoundingDetector:
        y[y == 2] = -1
    network = torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    made = pytorch_ood_detector(kind(network.eval()))
    needed = made.requires_fit
    assert needed is not kind(network).is_fitted
    if needed:
        with pytest.raises(api.RequiresFittingException):
            made(x)
    assert made.fit(DataLoader(TensorDataset(x, y), batch_size=6)) is made
    scores = made(torch.randn(8, 10))
    assert scores.shape == (8,) and scores.isfinite().all() and scores.device == made.device
    assert isinstance(made, api.Detector) and not isinstance(made, api.LogitsDetector)
    assert next(iter(inspect.signature(made.predict).parameters)) == "x"
    fitted = pytorch_ood_detector(made.detector)  # no second time
    assert not fitted.requires_fit and torch.equal(fitted(x), made(x))


class Evaluator:
    """What OpenOOD's does with a postprocessor, in its order, and the metrics that it computes."""

    def __init__(self, net, postprocessor, loaders):
        base = sys.modules["openood.postprocessors"].BasePostprocessor
        if not isinstance(postprocessor, base):
            raise TypeError("postprocessor should inherit BasePostprocessor in OpenOOD")
        postprocessor.setup(net, loaders["id"], loaders["ood"])
        assert not postprocessor.APS_mode or postprocessor.hyperparam_search_done
        self.net, self.post, self.loaders = net.eval(), postprocessor, loaders

    def eval_ood(self):
        from sklearn.metrics import average_precision_score, roc_auc_score

        found = {}
        normal = self.post.inference(self.net, self.loaders["id"]["test"], False)
        for split in ("near", "far"):
            for name, loader in self.loaders["ood"][split].items():
                pred, conf, label = self.post.inference(self.net, loader, False)
                pred, conf = np.concatenate([normal[0], pred]), np.concatenate([normal[1], conf])
                label = np.concatenate([normal[2], -np.ones_like(label)])
                known = (label != -1).astype(int)
                accuracy = (pred[label != -1] == label[label != -1]).mean()
                aupr_out = average_precision_score(1 - known, 1 - conf)
                found[name] = roc_auc_score(known, conf), aupr_out, accuracy
        return found


def test_openood_s_evaluator_takes_the_postprocessor(model, labelled, monkeypatch):
    class BasePostprocessor:
        def __init__(self, config):
            self.config = config

    package, module = ModuleType("openood"), ModuleType("openood.postprocessors")
    package.__path__, module.BasePostprocessor = [], BasePostprocessor
    package.__spec__ = sys.__spec__
    monkeypatch.setitem(sys.modules, "openood", package)
    monkeypatch.setitem(sys.modules, "openood.postprocessors", module)
    train, both = labelled
    x = both.tensors[0]
    spoilt = x[60:].clone()
    spoilt[0] = torch.inf  # the model makes NaN of it; metrics take no infinity
    loaders = {
        "id": {
            "train": loader(train.tensors[0][:200], train.tensors[1][:200]),
            "test": loader(x[:60], embedded_labels("fashion-mnist")[:60]),
        },
        "ood": {
            "near": {"mnist": loader(x[60:], both.tensors[1][60:])},
            "far": {"spoilt": loader(spoilt, both.tensors[1][60:])},
        },
    }
    post = openood_postprocessor(lambda net: gradood.GradientKNN(net, nan_policy="flag"))
    assert isinstance(post, BasePostprocessor) and post.config is None
    found = Evaluator(model, post, loaders).eval_ood()
    auroc, aupr, accuracy = found["mnist"]
    detector = gradood.GradientKNN(model).fit(train.tensors[0][:200])
    own = gradood.evaluate(detector.score(x[:60]), detector.score(x[60:]))
    assert auroc == pytest.approx(own.auroc, abs=1e-6) and accuracy > 0.8
    assert found["spoilt"][0] >= auroc and np.isfinite(found["spoilt"]).all()
