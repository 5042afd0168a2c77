"""The parts of reports: text that stays text, digests, figures and pictures."""

import base64
import io
import math
import re
import weakref
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from gradood.data import embedded_images
from gradood.data.files.source import IterableSource
from gradood.evaluation.reports import figures
from gradood.evaluation.reports.axis import Squash
from gradood.evaluation.reports.digest import SAMPLE, Digest, Ranked, histogram_of
from gradood.evaluation.reports.html import facts, html, table, tag
from gradood.evaluation.reports.page import Page
from gradood.evaluation.reports.pictures import gallery, picture

HOSTILE = "<script>alert(1)</script>\" onload='x' & \x07\u202egnp.$_{"
FINITE = st.floats(-1e30, 1e30)


def rows(scores, decision=None):
    return [
        {"id": f"{i}.png", "score": s, "decision": decision, "layers": [], "error": None}
        for i, s in enumerate(scores)
    ]


def digest_of(given, **options):
    digest = Digest(**options)
    assert list(digest.read(given)) == list(given)
    return digest


@pytest.mark.parametrize(
    "made",
    [
        html(HOSTILE),
        tag("p", HOSTILE, title=HOSTILE),
        table([HOSTILE], [[HOSTILE, HOSTILE]]),
        facts({HOSTILE: HOSTILE}),
        gallery([Ranked(0, {"id": HOSTILE, "score": 1.0, "layers": [
            {"name": HOSTILE, "deviation": 1.0}]})], None),
        picture(torch.rand(1, 4, 4), HOSTILE),
        figures.roc({HOSTILE: ([0, 1], [0, 1]), "b": ([0, 1], [0, 1])}, title=HOSTILE).svg("a"),
    ],
)  # fmt: skip
def test_text_cannot_become_markup(made):
    parsed = ElementTree.fromstring(f"<x>{made}</x>".replace("xlink:href", "href").replace(
        '"pixels">', '"pixels"/>'))  # fmt: skip
    names = {element.tag for element in parsed.iter()}
    assert "script" not in names
    assert not {key for element in parsed.iter() for key in element.attrib} & {"onload"}
    shown = "".join(parsed.itertext()) + str([e.attrib for e in parsed.iter()])
    assert "alert(1)" in shown
    assert "\x07" not in shown and "\u202e" not in shown


def test_markup_is_not_escaped_twice():
    assert tag("p", tag("b", "a & b"), "<") == "<p><b>a &amp; b</b>&lt;</p>"


def test_a_page_allows_no_script_and_no_request():
    page = str(Page("title", "lead"))
    assert "default-src 'none'; img-src data:" in page and "<script" not in page


@given(st.lists(FINITE, min_size=1, max_size=60), st.integers(1, 9))
def test_extremes_are_those_of_sorting(scores, keep):
    digest = digest_of(rows(scores), keep=keep)
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert [place for place, _ in digest.highest] == order[:keep]
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    assert [place for place, _ in digest.lowest] == order[:keep]
    assert [row["score"] for _, row in digest.highest] == sorted(scores, reverse=True)[:keep]
    assert digest.limits == (min(scores), max(scores))


def test_places_count_skipped_inputs():
    given = rows([1.0, 2.0, 3.0], decision=1)
    given.insert(1, {"id": "broken.png", "score": None, "error": "no picture"})
    digest = digest_of(given)
    assert [place for place, _ in digest.highest] == [3, 2, 0]
    assert (digest.scored, digest.skipped, digest.decided, digest.flagged) == (3, 1, 3, 3)
    assert [row["id"] for row in digest.errors] == ["broken.png"]


def test_the_sample_is_uniform():
    count = 2 * SAMPLE
    sample = digest_of(rows(np.arange(count, dtype=float))).sample
    assert len(np.unique(sample)) == SAMPLE
    # Uniform on 0 … count: mean within 4 standard errors, and a quarter in every quarter.
    assert abs(sample.mean() - count / 2) < 4 * count / math.sqrt(12 * SAMPLE)
    quarters = np.histogram(sample, 4, (0, count))[0]
    assert np.abs(quarters - SAMPLE / 4).max() < 4 * math.sqrt(SAMPLE * 3 / 16)


@given(st.lists(FINITE, min_size=1, max_size=60))
def test_a_histogram_holds_every_score_once(scores):
    given = rows(scores)
    counts, edges, squash = histogram_of(lambda: given, digest_of(given))
    assert counts.sum() == len(scores)
    assert (np.diff(edges) >= 0).all()
    spread = max(map(abs, (*edges, squash.spread)))
    np.testing.assert_allclose(squash.inverse(squash.forward(edges)), edges, atol=1e-9 * spread)


def test_rows_are_not_kept():
    class Row(dict):
        __slots__ = ("__weakref__",)

        __hash__ = object.__hash__

    alive, most = weakref.WeakSet(), 0

    def stream():
        nonlocal most
        for row in rows(np.random.default_rng(0).random(2000)):
            row = Row(row)
            alive.add(row)
            most = max(most, len(alive))
            yield row

    digest = Digest(keep=5)
    for row in stream():
        digest.add(row)
    histogram_of(stream, digest)
    assert most < 20  # of 2000: the kept ones and those on their way


def test_ticks_are_scores_on_the_axis():
    scores = np.random.default_rng(0).standard_cauchy(500) * 7 + 40
    plot = figures.score_histogram(scores, scores[:50] + 5, threshold=50.0)
    panel = plot.figure.axes[0]
    squash = Squash.of(scores)
    ticks = [(tick.get_position()[0], float(tick.get_text())) for tick in panel.get_xticklabels()]
    assert len(ticks) >= 3
    for at, score in ticks:
        assert squash.inverse(at) == pytest.approx(score, abs=1e-9)
    places = squash.forward(scores)
    assert places.min() - 0.1 <= ticks[0][0] and ticks[-1][0] <= places.max() + 0.1


def test_nearly_equal_scores_do_not_make_the_axis_endless():
    scores = np.append(np.linspace(0, 1e-12, 99), 1.0)
    squash = Squash.of(scores)
    assert squash.forward(1.0) - squash.forward(0.0) < 15  # asinh of 1e6, not of 1e12
    edges = squash.edges(0.0, 1.0)
    assert edges[0] <= 0 and edges[-1] >= 1 and (np.diff(edges) >= 0).all()


def test_shares_and_threshold_are_drawn_where_they_are():
    plot = figures.score_histogram(np.arange(100.0), np.arange(200.0, 240.0), threshold=150.0)
    normal, anomalous = plot.figure.axes[0].patches
    squash = Squash.of(np.arange(100.0))
    for patch, (low, high) in ((normal, (0, 99)), (anomalous, (200, 239))):
        shares, places, _ = patch.get_data()
        assert shares.sum() == pytest.approx(1)
        used = np.flatnonzero(shares)
        assert squash.inverse(places[used[0]]) <= low <= squash.inverse(places[used[0] + 1])
        assert squash.inverse(places[used[-1]]) <= high <= squash.inverse(places[used[-1] + 1])
    (line,) = plot.figure.axes[0].lines
    assert squash.inverse(line.get_xdata()[0]) == pytest.approx(150)


def test_long_lines_are_thinned_without_moving():
    x = np.linspace(0, 1, 20_000)
    plot = figures.roc({"a": (x, np.sqrt(x))})
    drawn = plot.figure.axes[0].lines[0]
    places, values = drawn.get_data()
    assert len(places) <= 401 and (places[0], places[-1]) == (0, 1)
    np.testing.assert_allclose(values, np.sqrt(places))
    assert np.hypot(np.diff(places), np.diff(values)).max() < 0.01


def test_figures_take_any_name_and_the_colours_of_the_page():
    lines = {name: ([0, 1], [0, 1]) for name in ("_hidden", "$a_{$", "名前", "x" * 200)}
    plot = figures.roc(lines)
    assert plot.png().startswith(b"\x89PNG")
    svg = plot.svg("roc-1")
    assert "_hidden" in svg and "名前" in svg and "$a_{$" in svg and "x" * 30 in svg
    assert svg == figures.roc(lines).svg("roc-1")
    assert not re.findall(r"#[0-9a-f]{6}", svg) and "var(--ink)" in svg
    assert "http" not in svg and "<style" not in svg


def shown(made):
    kind, content = re.search(r'src="data:image/(png|jpeg);base64,([^"]*)"', made).groups()
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_a_picture_is_the_input():
    image = embedded_images("mnist")[3]
    pixels = (image[0] * 255).round().byte().numpy()
    for same in (image, image[0], image.numpy(), pixels, Image.fromarray(pixels)):
        kind, found = shown(picture(same, "a digit"))
        assert kind == "png"
        np.testing.assert_array_equal(found, pixels)


def test_a_picture_has_its_colours_and_no_more_pixels_than_are_shown():
    colours = np.zeros((400, 800, 3), np.uint8)
    colours[..., 0], colours[:, 400:, 2] = 200, 90
    for same in (colours, torch.from_numpy(colours).permute(2, 0, 1), Image.fromarray(colours)):
        kind, found = shown(picture(same, "colours"))
        assert kind == "jpeg" and found.shape == (96, 192, 3)
        np.testing.assert_allclose(found[48, 40], (200, 0, 0), atol=8)
        np.testing.assert_allclose(found[48, 150], (200, 0, 90), atol=8)


def test_floats_of_any_range_are_shown_from_black_to_white():
    _, found = shown(picture(torch.linspace(-7, 3, 16).view(4, 4), "x"))
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize(
    "value", [torch.rand(5), torch.rand(2, 3, 4, 5), "text", torch.rand(7, 3, 9)]
)
def test_what_is_no_picture_says_so(value):
    assert "not a picture" in picture(value, "x")


def test_inputs_that_changed_are_not_shown_as_if_they_had_not():
    images = [("a", torch.rand(4, 4)), ("b", torch.rand(4, 4)), ("c", torch.rand(4, 4))]
    source = IterableSource(images)
    made = gallery(
        [
            Ranked(place, {"id": name, "score": 1.0})
            for place, name in ((0, "a"), (1, "x"), (7, "d"))
        ],
        source,
    )
    assert made.count("<img") == 1 and made.count("no longer there") == 2
