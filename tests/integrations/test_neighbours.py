"""gradood inside pytorch-ood and OpenOOD, by their conventions."""

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
