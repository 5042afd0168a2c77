"""A certificate is a function of seed, input and model, and of nothing else."""

import subprocess
import sys
from functools import partial

import pytest
import torch

import gradood
from gradood.smoothing import noise
from gradood.smoothing.counting import Block
from gradood.smoothing.inference import Certified
from gradood.smoothing.noise import NoisyInputs
from gradood.smoothing.sampling import Sampler


@pytest.fixture(scope="module")
def detector(classifier):
    from gradood.data import embedded_images

    train = embedded_images("fashion-mnist-train")
    found = gradood.GradientMahalanobis(classifier, progress=False).fit(train[:300])
    return found.calibrate(train[300:400], fpr=0.1)


def certificates(classifier, detector, pictures, ids=None, **changes):
    """Every kind of certificate, as the records that would be written."""
    smoothing = gradood.Smoothing(
        **{"sigma": 0.03, "n": 48, "n0": 16, "tile": 16, "seed": 0, **changes}
    )
    common = {"x": pictures, "settings": smoothing, "ids": ids}
    confidence = gradood.MaxSoftmax(classifier)
    made = [
        gradood.certify_class(classifier, **common),
        gradood.certify_class(classifier, **common, radius=0.01),
        gradood.certify_mean(confidence, **common, radius=[0.0, 0.02]),
        gradood.certify_quantile(detector, **common, radius=[0.0, 0.02]),
        gradood.certify_decision(detector, **common, radius=0.01),
    ]
    return [certificate.evidence.records() for certificate in made]


@pytest.fixture(scope="module")
def expected(classifier, detector):
    from gradood.data import embedded_images

    return certificates(classifier, detector, embedded_images("fashion-mnist")[:2])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_same_certificates_for_every_batch_size(
    classifier, detector, pictures, expected, batch_size
):
    got = certificates(classifier, detector, pictures[:2], batch_size=batch_size)
    assert got == expected


def test_same_certificates_for_two_threads(classifier, detector, pictures, expected, threads):
    threads(2)
    assert certificates(classifier, detector, pictures[:2]) == expected


def test_same_certificates_in_any_order_and_company(classifier, detector, pictures, expected):
    order = [1, 0]
    got = certificates(classifier, detector, pictures[order], ids=order)
    assert got == [[records[i] for i in order] for records in expected]
    alone = certificates(classifier, detector, pictures[1:2], ids=[1])
    assert alone == [[records[1]] for records in expected]


def test_other_seeds_give_other_samples(classifier, detector, pictures, expected):
    got = certificates(classifier, detector, pictures[:2], seed=1)
    for changed, kept in zip(got[2:4], expected[2:4], strict=True):  # histograms, not two counts
        assert all(a["counts"] != b["counts"] for a, b in zip(changed, kept, strict=True))


def test_every_forward_has_the_same_shape(points):
    shapes = set()

    def model(x):
        shapes.add(tuple(x.shape))
        return torch.stack([-x[:, 0], x[:, 0]], 1)

    for batch_size in ("auto", 1, 100):
        smoothing = gradood.Smoothing(sigma=1.0, n=1000, n0=10, batch_size=batch_size)
        gradood.certify_class(model, points(2.0, 0.0, 1.0), settings=smoothing, radius=0.2)
    assert shapes == {(64, 4)}


def test_noisy_copies_of_several_inputs_share_a_batch(points):
    seen = []

    def model(x):
        seen.append(x[:, 0].round().unique().tolist())
        return torch.stack([-x[:, 0], x[:, 0]], 1)

    x = points(10.0, 20.0, 30.0)
    gradood.certify_class(
        model, x, settings=gradood.Smoothing(sigma=1e-3, n=96, n0=32), radius=1e-3
    )
    assert [10.0, 20.0] in seen, "two inputs have a block each in one batch"


def test_stopped_inputs_make_room_for_the_next(points):
    """The clear inputs around an open one stop at once; it goes on to n, and nothing else does."""
    calls = 0

    def model(x):
        nonlocal calls
        calls += len(x)
        return torch.stack([-x[:, 0], x[:, 0]], 1)

    x = points(5.0, 5.0, 0.5, 5.0, 5.0, 5.0)
    smoothing = gradood.Smoothing(sigma=0.5, n=6400, n0=32, futility=0.0)
    found = gradood.certify_class(model, x, settings=smoothing, radius=0.5)
    assert found.samples[2] == 6432
    assert (found.samples[[0, 1, 3, 4, 5]] == 80).all()
    assert calls <= int(found.samples.sum()) + 20 * 64, "more was drawn than is counted"


def test_samples_are_counted_exactly_once(points):
    """Every (input, sample) once, whatever the batch: n need not be a multiple of anything."""
    seen = []
    plan = NoisyInputs(points(1.0, 2.0), None, gradood.Smoothing(sigma=1.0, n=77, tile=48))
    original = plan.copies

    def copies(rows, samples, tag):
        seen.extend(zip(rows.tolist(), samples.tolist(), strict=True))
        return original(rows, samples, tag)

    plan.copies = copies
    model = Certified(lambda x: x[:, 0], plan.settings, 1)
    sampler = Sampler(model, plan, lambda now: None)
    from gradood.smoothing.counting import count_above
    from gradood.smoothing.tally import Tally

    tally = Tally(2)
    sampler.run(tally, partial(count_above, threshold=1.5), 77, noise.ESTIMATION)
    assert set(seen) == {(row, sample) for row in range(2) for sample in range(77)}
    assert tally.samples.tolist() == [77, 77]


def test_records_know_their_samples():
    from gradood.smoothing.counting import record

    blocks = [Block(0, 0, 2), Block(1, 3, 1)]
    owners = torch.tensor([0, 0, 1])
    rows = record(torch.tensor([1.0, 2.0, 3.0]), owners, blocks, n=4)
    assert rows.tolist() == [[1, 2, 0, 0], [0, 0, 0, 3]]


MEMORY = """
import resource, sys, torch, gradood
x = torch.zeros(4, 3, 32, 32)
smoothing = gradood.Smoothing(sigma=0.5, n=int(sys.argv[1]), n0=16)
gradood.certify_quantile(lambda z: z[:, 0, 0, 0], x, smoothing, radius=0.1)
gradood.certify_mean(lambda z: z[:, 0, 0, 0].sigmoid(), x, smoothing, radius=0.1)
gradood.certify_class(lambda z: z[:, :, 0, 0], x, smoothing)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit elsewhere")
def test_memory_does_not_grow_with_n():
    def peak(n):
        command = [sys.executable, "-c", MEMORY, str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert peak(30_000) < 1.05 * peak(1000)


@pytest.mark.parametrize("batch_size", ["auto", 1, 640])
def test_blocks_beyond_the_stop_are_not_counted(half_space, points, batch_size):
    """A lone input fills its tile with further blocks, which the second makes superfluous."""
    smoothing = gradood.Smoothing(sigma=0.5, n=6400, n0=32, batch_size=batch_size)
    found = gradood.certify_class(half_space, points(5.0), settings=smoothing, radius=0.1)
    assert found.samples[0] == 48 and sum(found.evidence.rows[0]["counts"]) == 16
