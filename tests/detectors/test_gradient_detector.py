"""The fused detector and its measures of novelty, against independent computations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

import gradood
from gradood.detectors import PARTS, GradientDetector, Part
from gradood.detectors.class_gaussians import CLASS_GAUSSIANS
from gradood.detectors.fusion import agreement_weights
from gradood.detectors.neighbours import COUNT, NEIGHBOURS
from gradood.detectors.relative import RELATIVE
from gradood.detectors.whitening import SHRINKAGE
from gradood.errors import CheckpointError, InputError
from gradood.evaluation import evaluate

SAVED = Path(__file__).parent / "saved"
#: What the version that wrote these files made of three anomalous pictures.
EARLIER_SCORES = {
    "fast": [3.293919, 5.090494, 1.495516],
    "adversarial": [22.3841, 5.432987, 1.768796],
}


@pytest.fixture(scope="module")
def vectors():
    """Normal vectors of three classes, their classes, and others to score."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    classes = torch.arange(90) % 3
    spread = torch.randn(90, 4, generator=generator, dtype=torch.float64)
    normal = centres[classes] + spread * torch.tensor([1.0, 2.0, 0.5, 1.5])
    others = 4 * torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return normal, classes, others, torch.arange(12) % 3


def shrunk(covariance, by=1e-3):
    return covariance + by * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def mahalanobis(centred, covariance):
    return np.einsum("nd,nd->n", centred, np.linalg.solve(covariance, centred.T).T)


def pooled(normal, classes):
    return np.cov(
        np.concatenate([normal[classes == c] - normal[classes == c].mean(0) for c in range(3)]).T
    )


def test_neighbours_are_whitened_within_classes(vectors):
    normal, classes, others, _ = (v.numpy() for v in vectors)
    precision = np.linalg.inv(shrunk(pooled(normal, classes)))
    root = np.linalg.cholesky(precision)
    bank = NearestNeighbors(n_neighbors=COUNT).fit(normal @ root)
    expected = bank.kneighbors(others @ root)[0][:, -1]
    scores = NEIGHBOURS.score(*vectors[2:], NEIGHBOURS.fit(*vectors[:2]))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_gaussian_is_that_of_the_predicted_class(vectors):
    normal, classes, others, predicted = (v.numpy() for v in vectors)
    expected = []
    for vector, c in zip(others, predicted, strict=True):
        group = normal[classes == c]
        mixed = (len(group) * np.cov(group.T) + 4 * pooled(normal, classes)) / (len(group) + 4)
        covariance = shrunk(mixed, SHRINKAGE)
        centred = (vector - group.mean(0))[None]
        expected.append(mahalanobis(centred, covariance)[0] + np.linalg.slogdet(covariance)[1])
    scores = CLASS_GAUSSIANS.score(*vectors[2:], CLASS_GAUSSIANS.fit(*vectors[:2]))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_relative_distance_subtracts_that_to_all_normal_data(vectors):
    normal, classes, others, _ = (v.numpy() for v in vectors)
    within = shrunk(pooled(normal, classes))
    nearest = [mahalanobis(others - normal[classes == c].mean(0), within) for c in range(3)]
    overall = mahalanobis(others - normal.mean(0), shrunk(np.cov(normal.T)))
    scores = RELATIVE.score(*vectors[2:], RELATIVE.fit(*vectors[:2]))
    np.testing.assert_allclose(scores, np.min(nearest, 0) - overall, rtol=1e-9)


@pytest.mark.parametrize("novelty", [NEIGHBOURS, CLASS_GAUSSIANS, RELATIVE])
def test_a_class_that_was_never_predicted_is_scored_too(novelty, vectors):
    normal, classes, others, _ = vectors
    scores = novelty.score(others, torch.full((12,), 7), novelty.fit(normal, classes))
    assert scores.isfinite().all()
    near = novelty.score(normal[:12], torch.full((12,), 7), novelty.fit(normal, classes))
    assert near.mean() < scores.mean()


@pytest.mark.parametrize("novelty", [NEIGHBOURS, CLASS_GAUSSIANS, RELATIVE])
def test_too_few_normal_vectors_are_an_error(novelty, vectors):
    with pytest.raises(InputError, match="more"):
        novelty.fit(vectors[0][:3], torch.arange(3))


def test_penultimate_features_come_with_the_norms(model, pictures, norms):
    expected = model.features(pictures.normal).detach()
    torch.testing.assert_close(norms["normal"].features, expected, rtol=1e-4, atol=1e-5)
    assert gradood.gradient_norms(model, pictures.normal[:2], parameters="conv.*").features is None
    micro = gradood.gradient_norms(model, pictures.normal[:5], micro_batch=2)
    torch.testing.assert_close(micro.features, expected[:5], rtol=1e-4, atol=1e-5)


def test_a_loss_for_each_label(model, pictures):
    x = pictures.normal[:3]
    both = gradood.gradient_norms(model, x, label=["all_hot", "uniform"], loss=["bce", "ce"]).values
    for k, (label, loss) in enumerate([("all_hot", "bce"), ("uniform", "ce")]):
        expected = gradood.gradient_norms(model, x, label=label, loss=loss).values
        torch.testing.assert_close(both[:, k], expected, rtol=1e-4, atol=0)
    with pytest.raises(InputError, match="1 losses for 2 labels"):
        gradood.gradient_norms(model, x, label=["all_hot", "uniform"], loss=["bce"])


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        ("forward", ["layers", "class energy", "relative logits"]),
        ("fast", ["layers", "class energy", "relative logits", "norms"]),
        ("adversarial", ["layers", "energy", "relative logits", "margin drop"]),
    ],
)
def test_presets_score_save_and_load(preset, parts, model, pictures, tmp_path):
    detector = GradientDetector(model, preset).fit(pictures.fit)
    scores = [detector.score(images) for images in (pictures.normal, pictures.anomalous)]
    assert evaluate(*scores).auroc > 0.85
    assert [part.name for part in detector.parts] == parts
    detector.calibrate(pictures.normal, fpr=0.1).save(tmp_path / "d")
    loaded = gradood.load(tmp_path / "d", model)
    assert (loaded.preset, loaded.threshold) == (preset, detector.threshold)
    assert loaded.parts == detector.parts
    assert torch.equal(loaded.score(pictures.anomalous), scores[1])


@pytest.mark.parametrize("preset, passes", [("forward", 0), ("fast", 1), ("adversarial", 0)])
def test_presets_take_so_many_backward_passes(preset, passes, model, pictures):
    detector = GradientDetector(model, preset)
    assert detector.norms(pictures.normal[:3]).values.shape == (3, passes, 29)


@pytest.mark.parametrize("preset", ["fast", "adversarial"])
def test_files_of_earlier_versions_score_as_they_did(preset, model, pictures):
    """``earlier-*.safetensors`` were written before presets had named parts."""
    detector = gradood.load(SAVED / f"earlier-{preset}.safetensors", model)
    expected = EARLIER_SCORES[preset]
    assert detector.score(pictures.anomalous[:3]).tolist() == pytest.approx(expected, rel=2e-3)


def test_parts_are_composed(model, pictures, tmp_path):
    """A part of one's own beside others, one label for each of two parts."""
    detector = GradientDetector(model, parts=["energy", "norms", "norms:half"]).fit(pictures.fit)
    assert detector.norms(pictures.normal[:2]).values.shape == (2, 2, 29)
    each = [
        GradientDetector(model, parts=[name]).fit(pictures.fit).score(pictures.normal)
        for name in ("energy", "norms", "norms:half")
    ]
    weights = detector._learned["weights"]
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6) and bool((weights >= 0).all())
    torch.testing.assert_close(
        detector.score(pictures.normal), weights @ torch.stack(each), rtol=1e-3, atol=1e-3
    )
    longest = Part("longest", (), lambda norms: {}, lambda norms, _: norms.features.norm(dim=1))
    own = GradientDetector(model, parts=[longest, "energy"]).fit(pictures.fit)
    own.save(tmp_path / "own")
    with pytest.raises(CheckpointError, match="longest"):
        gradood.load(tmp_path / "own", model)
    try:
        longest.register()
        loaded = gradood.load(tmp_path / "own", model)
    finally:
        PARTS.pop("longest", None)
    assert torch.equal(loaded.score(pictures.normal), own.score(pictures.normal))


def test_parts_that_agree_share_a_weight():
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4000, generator=generator, dtype=torch.float64)
    scores = torch.stack([one, one, other], 1)
    weights = agreement_weights(scores)
    assert weights.sum() == pytest.approx(1)
    covariance = np.cov(scores.numpy().T) + 0.1 * np.eye(3)
    expected = np.linalg.solve(covariance, np.ones(3))
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-9)
    assert weights[0] == pytest.approx(weights[1])
    # A part that another one repeats with noise would count against it: it counts for nothing.
    noisy = torch.stack([one, 3 * one + 0.1 * other], 1)
    assert agreement_weights(noisy).min() == 0


def test_no_part_outweighs_the_others_by_normality():
    """Four times the features: what the energy likes no other part can call back."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return self.linear(x)

    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(1))
    detector = GradientDetector(Head().eval(), parts=["energy"]).fit(x[:300])
    scores = detector.score(torch.cat([x[300:], 50 * x[300:]]))
    assert scores.min() > -2.5
    assert evaluate(scores[:100], scores[100:]).auroc < 0.9


@pytest.mark.parametrize("counts", [(3, 2), (64,)])
def test_layers_are_whitened_one_by_one(counts):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(300, sum(counts), generator=generator, dtype=torch.float64)
    power = mean.square() + torch.rand(300, sum(counts), generator=generator, dtype=torch.float64)
    channels = torch.stack([mean, power], 1)
    names = tuple(f"layer {i}" for i in range(len(counts)))
    logits = torch.zeros(300, 2)
    norms = gradood.GradientNorms(
        *(torch.zeros(300, 0, 1), ("w",), logits, None, power.sum(1, keepdim=True), channels),
        activation_names=names,
        channel_counts=counts,
    )
    part = PARTS["layers"]
    learned = part.fit(norms.select(slice(0, 200)))
    found = part.score(norms.select(slice(200, None)), learned)
    expected, start = np.zeros(100), 0
    for count in counts:
        own = slice(start, start + count)
        floor = 0.01 * power[:, own].mean(1, keepdim=True)
        rows = torch.cat([mean[:, own], (power[:, own] + floor).log()], 1).numpy()
        rows = (rows - rows[:200].mean(0)) / rows[:200].std(0, ddof=1)
        distance = mahalanobis(rows, shrunk(np.cov(rows[:200].T), SHRINKAGE))
        root = np.sqrt(distance / (2 * count))
        expected += root[200:] / max(root[:200].std(ddof=1), 0.1 * root[:200].mean())
        start += count
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_layers_that_few_inputs_do_not_fill_count_no_more_than_others(model, pictures):
    part, norms = PARTS["layers"], GradientDetector(model, parts=["layers"]).norms
    few = part.fit(norms(pictures.fit[:24]))  # as many are as far off as can be: there is no spread
    scores = part.score(norms(pictures.normal), few)
    assert 1 < float(scores.mean()) < 1000


def test_scores_are_standardised_on_normal_inputs_that_were_held_back(model, norms):
    detector = GradientDetector(model).fit(norms["fit"])
    scores = detector.score(norms["fit"].select(slice(4, None, 5)))
    assert abs(float(scores.mean())) < 1e-5
    assert 0.5 < float(scores.std()) <= 1.0 + 1e-5


class Headless(nn.Module):
    """Its last layer is a convolution, and no layer normalises."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 28)

    def forward(self, x):
        return self.conv(x).flatten(1)


def test_what_a_model_lacks_is_left_out_and_said(pictures, caplog):
    torch.manual_seed(0)
    parts = ["layers", "directions", "relative", "energy"]
    detector = GradientDetector(Headless().eval(), parts=parts).fit(pictures.fit)
    assert [part.name for part in detector.parts] == ["layers", "energy"]
    assert caplog.text.count("no penultimate features") == 2
    assert detector.score(pictures.anomalous).isfinite().all()


@pytest.mark.parametrize("part", ["relative", "relative logits"])
def test_one_predicted_class_has_no_relative_distance(part, model, norms, caplog):
    classes = norms["fit"].logits.argmax(1)
    one = norms["fit"].select(classes == classes.mode().values)
    detector = GradientDetector(model, parts=["class energy", part]).fit(one)
    assert [kept.name for kept in detector.parts] == ["class energy"]
    assert f"{part} (all normal inputs are predicted to be of one class)" in caplog.text


def test_parts_that_want_more_inputs_a_class_are_left_out(model, pictures, caplog):
    parts = ["directions", "relative", "class energy", "relative logits", "norms"]
    detector = GradientDetector(model, parts=parts).fit(pictures.fit[:60])
    assert [part.name for part in detector.parts] == ["directions", *parts[2:4]]
    assert caplog.text.count("left out") == 1
    assert detector.score(pictures.normal).isfinite().all()


def test_what_is_not_there_is_an_error(model, pictures):
    with pytest.raises(InputError, match="forward, fast, adversarial$"):
        GradientDetector(model, "slow")
    with pytest.raises(InputError, match='in its place take "forward"'):
        GradientDetector(model, "best")
    with pytest.raises(InputError, match="layers, directions"):
        GradientDetector(model, parts=["layer"])
    with pytest.raises(InputError, match="no part is left"):
        GradientDetector(model, parts=["norms"]).fit(pictures.fit[:20])
    detector = GradientDetector(model, parts=["layers"]).fit(pictures.fit)
    with pytest.raises(InputError, match="activations=True"):
        detector.score(gradood.gradient_norms(model, pictures.normal))
    with pytest.raises(InputError, match="1 labels were given, the detector reads 2"):
        both = GradientDetector(model, parts=["norms", "norms:half"]).fit(pictures.fit)
        both.score(gradood.gradient_norms(model, pictures.normal))


@pytest.mark.parametrize("count, said", [(199, True), (200, False)])
def test_too_few_normal_inputs_are_said(model, norms, caplog, count, said):
    GradientDetector(model).fit(norms["fit"].select(torch.arange(count) % len(norms["fit"].logits)))
    assert ("seen too little" in caplog.text) is said
