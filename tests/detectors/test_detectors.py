"""What holds for every detector, on the embedded classifier and real pictures."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

import gradood
from gradood.data import embedded_images
from gradood.detectors import (
    ConfoundingDetector,
    Energy,
    ExGrad,
    GradientDetector,
    GradientGMM,
    GradientKNN,
    GradientMahalanobis,
    GradNorm,
    GradUncertainty,
    MaxSoftmax,
)
from gradood.errors import InputError, ModelError, NotFittedError
from gradood.evaluation import evaluate
from gradood.gradients import GradientNorms, gradient_norms

#: What each reaches on MNIST digits with 200 normal pictures, with a margin; chance is 0.5.
LEAST_AUROC = {
    ConfoundingDetector: 0.97,
    GradientDetector: 0.9,
    GradientMahalanobis: 0.9,
    GradientKNN: 0.85,
    GradientGMM: 0.85,
    MaxSoftmax: 0.7,
    Energy: 0.85,
    GradNorm: 0.7,
    ExGrad: 0.6,
    GradUncertainty: 0.1,
}


def test_digits_score_higher_than_clothes(detector, norms_for):
    scores = (detector.score(norms_for(detector, name)) for name in ("normal", "anomalous"))
    auroc = evaluate(*scores).auroc
    assert auroc > LEAST_AUROC[type(detector)]


def test_images_score_as_their_norms_do(detector, pictures, norms_for):
    # atol: rounding of the norms is magnified by whitening.
    expected = detector.score(norms_for(detector, "normal"))
    torch.testing.assert_close(detector.score(pictures.normal), expected, rtol=1e-3, atol=1e-3)


class Pairs(Dataset):
    """A map-style data set of (image, label)."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], index % 10


SOURCES = {
    "DataLoader with labels": lambda x: DataLoader(TensorDataset(x, torch.arange(len(x))), 16),
    "DataLoader without labels": lambda x: DataLoader(x, 16),
    "Dataset with labels": Pairs,
    "TensorDataset": TensorDataset,
    "list of batches": lambda x: list(x.split(16)),
    "generator of pairs": lambda x: ((b, torch.zeros(len(b))) for b in x.split(16)),
    "list of lists, as DataLoader collates": lambda x: [[b, None] for b in x.split(16)],
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES.keys())
def test_every_source_scores_like_the_tensor_in_batches(source, fitted, pictures):
    for detector in (fitted(GradientKNN, batch_size=16), fitted(Energy, batch_size=16)):
        x = pictures.normal[:40]
        assert torch.equal(detector.score(source(x)), detector.score(x))


def test_fit_reads_a_loader_once_and_ignores_labels(model, pictures):
    loader = DataLoader(TensorDataset(pictures.fit, torch.arange(200)), 50)
    from_loader = GradientMahalanobis(model, batch_size=50).fit(loader)
    from_generator = GradientMahalanobis(model).fit(batch for batch in pictures.fit.split(50))
    from_tensor = GradientMahalanobis(model, batch_size=50).fit(pictures.fit)
    expected = from_tensor.score(pictures.normal[:8])
    assert torch.equal(from_loader.score(pictures.normal[:8]), expected)
    assert torch.equal(from_generator.score(pictures.normal[:8]), expected)


@pytest.mark.parametrize("source", ["a path", {"x": 1}, 3, torch.tensor(1.0), [1, 2], [[]]])
def test_what_holds_no_inputs_is_an_error(source, fitted):
    with pytest.raises(InputError, match=r"Tensor|tensor"):
        fitted(Energy).score(source)


def test_score_does_not_depend_on_the_batch_size(gradient_detector, fitted, pictures):
    one_by_one = fitted(type(gradient_detector), batch_size=7).score(pictures.normal)
    torch.testing.assert_close(
        one_by_one, gradient_detector.score(pictures.normal), rtol=1e-3, atol=1e-3
    )


def test_no_inputs_give_no_scores(detector):
    assert detector.score(torch.empty(0, 1, 28, 28)).shape == (0,)
    assert detector.score([]).shape == (0,)


def test_fit_on_no_inputs_is_an_error(model):
    for source in ([], torch.empty(0, 1, 28, 28)):
        with pytest.raises(InputError, match="no inputs to fit"):
            GradientKNN(model).fit(source)


@pytest.mark.parametrize(
    "detector_class", [ConfoundingDetector, GradientMahalanobis, GradientKNN, GradientGMM]
)
def test_before_fit_nothing_works(detector_class, model, pictures, tmp_path):
    detector = detector_class(model)
    for use in (detector.score, detector.predict, detector.calibrate):
        with pytest.raises(NotFittedError, match="fit"):
            use(pictures.normal)
    with pytest.raises(NotFittedError, match="fit"):
        detector.save(tmp_path / "detector.safetensors")


def test_threshold_exists_only_after_calibrate_and_not_after_a_new_fit(detector, norms):
    for use in (lambda: detector.threshold, lambda: detector.predict(norms["normal"])):
        with pytest.raises(NotFittedError, match="calibrate"):
            use()
    detector.calibrate(norms["normal"])
    assert math.isfinite(detector.threshold)
    again = [norms["fit"], norms["anomalies"]]
    detector.fit(*again[: 2 if isinstance(detector, ConfoundingDetector) else 1])
    with pytest.raises(NotFittedError, match="calibrate"):
        _ = detector.threshold


def test_a_failed_fit_leaves_no_half_fitted_detector(fitted, pictures):
    detector = fitted(GradientKNN)
    with pytest.raises(InputError, match="neighbour"):
        detector.fit(pictures.fit[:3])
    with pytest.raises(NotFittedError):
        detector.score(pictures.normal)


def test_predict_is_score_above_threshold(detector, norms):
    detector.calibrate(norms["normal"], fpr=0.1)
    scores = detector.score(norms["anomalous"])
    predicted = detector.predict(norms["anomalous"])
    assert predicted.dtype == torch.bool
    assert torch.equal(predicted, scores > detector.threshold)
    assert detector.predict(norms["normal"]).float().mean() <= 0.1


def test_false_positive_rate_on_held_out_normal_pictures(model, fitted):
    known = embedded_images("fashion-mnist-train")[200:1000]
    norms = gradient_norms(model, known)
    first, second = (
        GradientNorms(norms.values[rows], norms.names, norms.logits[rows])
        for rows in (slice(0, 400), slice(400, 800))
    )
    for detector_class in (GradientMahalanobis, GradientKNN, Energy):
        detector = fitted(detector_class).calibrate(first, fpr=0.1)
        rate = detector.predict(second).float().mean()
        # Both samples of 400 are random: variances add. Three standard deviations.
        assert abs(rate - 0.1) < 3 * math.sqrt(0.1 * 0.9 * (1 / 400 + 1 / 400))


def test_a_seed_gives_exactly_the_same_detector(gradient_detector, fitted, norms):
    torch.rand(3)  # the global generator is elsewhere now
    again = fitted(type(gradient_detector))
    assert torch.equal(again.score(norms["normal"]), gradient_detector.score(norms["normal"]))


@pytest.mark.parametrize("detector_class", [ConfoundingDetector, GradientGMM])
def test_another_seed_gives_another_detector(detector_class, fitted, norms):
    scores = [fitted(detector_class, seed=seed).score(norms["normal"]) for seed in (0, 1)]
    assert not torch.equal(*scores)


def test_fit_leaves_the_global_generator_alone(fitted):
    state = torch.random.get_rng_state()
    fitted(ConfoundingDetector)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fit_and_score_inside_inference_mode(fitted, pictures):
    with torch.inference_mode():
        scores = fitted(ConfoundingDetector).score(pictures.normal[:4])
    assert torch.equal(scores, fitted(ConfoundingDetector).score(pictures.normal[:4]))


def test_nan_is_an_error_by_default_and_infinite_when_flagged(detector, fitted, pictures):
    x = pictures.normal[:6].clone()
    x[2, 0, 3, 3], x[4, 0, 0, 0] = math.nan, math.inf
    with pytest.raises(InputError, match="NaN or Inf"):
        detector.score(x)
    scores = fitted(type(detector), nan_policy="flag").score(x)
    assert scores[[2, 4]].tolist() == [math.inf, math.inf]
    rest = [0, 1, 3, 5]
    torch.testing.assert_close(scores[rest], detector.score(x[rest]), rtol=1e-3, atol=1e-3)


def test_flagged_inputs_cannot_be_fitted_on(model, pictures):
    x = pictures.fit[:20].clone()
    x[7] = math.nan
    with pytest.raises(InputError, match=r"rows \[7\]"):
        GradientMahalanobis(model, nan_policy="flag").fit(x)
    with pytest.raises(InputError, match=r"anomalies.*rows \[7\]"):
        ConfoundingDetector(model, nan_policy="flag").fit(pictures.fit[:20], x)


def test_norms_of_other_parameters_or_labels_are_refused(fitted, model, pictures, norms):
    detector = fitted(GradientKNN)
    few = gradient_norms(model, pictures.normal[:2], parameters="stage1.*")
    with pytest.raises(InputError, match=r"conv\.weight"):
        detector.score(few)
    two = gradient_norms(model, pictures.normal[:2], label=["all_hot", "zero_hot"])
    with pytest.raises(InputError, match="2 labels"):
        detector.score(two)


def test_a_selection_of_parameters_and_several_labels(model, pictures):
    options = {"parameters": ["stage3.*", "linear.*"], "label": ["all_hot", "predicted"]}
    detector = GradientMahalanobis(model, **options).fit(pictures.fit)
    scores = evaluate(detector.score(pictures.normal), detector.score(pictures.anomalous))
    assert scores.auroc > 0.85


def test_logit_detectors_refuse_a_model_in_training_mode(pictures, model):
    training = type(model)().train()
    with pytest.raises(ModelError, match="eval"):
        MaxSoftmax(training).score(pictures.normal[:2])


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"nan_policy": "ignore"}, {"neighbours": 0}], ids=str
)
def test_settings_are_checked(options, model):
    with pytest.raises(InputError, match=next(iter(options))):
        GradientKNN(model, **options)


def test_progress_bar_shows_only_when_asked(fitted, pictures, capsys):
    fitted(Energy).score(pictures.normal[:4])
    assert capsys.readouterr().err == ""
    fitted(Energy, progress=True).score(pictures.normal[:4])
    captured = capsys.readouterr()
    assert "scoring" in captured.err
    assert captured.out == ""


def test_repr_says_what_it_is_and_what_it_was_fitted_on(fitted, norms, model, tmp_path):
    detector = GradientKNN(model, neighbours=7)
    assert repr(detector) == (
        "GradientKNN(ResNet, label='all_hot', loss='bce', neighbours=7, not fitted, no threshold)"
    ).replace("ResNet", type(model).__name__)
    detector.fit(norms["fit"])
    assert "fitted on 200 inputs, no threshold" in repr(detector)
    detector.calibrate(norms["normal"], fpr=0.1)
    shown = f"threshold {detector.threshold:.6g} (fpr 0.1 on 80 inputs)"
    assert shown in repr(detector)
    detector.save(tmp_path / "d")
    assert repr(gradood.load(tmp_path / "d", model)) == repr(detector)
    detector.threshold = 2.5
    assert repr(detector).endswith("threshold 2.5)")
    assert "200 inputs" in repr(fitted(ConfoundingDetector))  # and 60 anomalies
    assert repr(Energy(model)) == f"Energy({type(model).__name__}, no threshold)"


def test_repr_of_every_detector(detector):
    text = repr(detector)
    assert text.startswith(type(detector).__name__) and len(text) < 200
