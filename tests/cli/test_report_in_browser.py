"""Reports in a real browser: they render, say nothing on the console and request nothing."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gradood.cli import app
from tests.pictures import pixels, write_pictures

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium"),
]
#: A folder and a file in it: together the name that a careless page would run.
SCRIPT = ("<script>alert(1)<", "script>.png")
IMAGE = "\" onerror='document.title=1' x='.png"

#: Opens the page inside itself at two widths, as it is, and says what a reader would see.
HARNESS = """<!DOCTYPE html><title>harness</title><body><script>
const page = PAGE;
const found = {};
let left = 2;
for (const width of [1100, 390]) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px`;
  frame.onload = () => {
    const seen = frame.contentDocument, root = seen.documentElement;
    const texts = [...seen.querySelectorAll("svg text")].map(t => [t, t.ownerSVGElement]);
    found[width] = {
      title: seen.title,
      text: seen.body.innerText,
      overflow: root.scrollWidth - root.clientWidth,
      images: seen.images.length,
      broken: [...seen.images].filter(i => !i.naturalWidth || !i.alt).length,
      figures: seen.querySelectorAll("svg").length,
      texts: texts.length,
      cut: texts.filter(([t, s]) => {
        const a = t.getBoundingClientRect(), b = s.getBoundingClientRect();
        return a.left < b.left - 2 || a.right > b.right + 2 || a.bottom > b.bottom + 2;
      }).map(([t]) => t.textContent),
      scripts: seen.scripts.length,
      ground: getComputedStyle(seen.body).backgroundColor,
      ink: getComputedStyle(seen.body).color,
      drawn: [...new Set(texts.map(([t]) => getComputedStyle(t).fill))],
    };
    if (!--left) document.documentElement.dataset.found = JSON.stringify(found);
  };
  frame.srcdoc = page;
  document.body.append(frame);
}
</script></body>"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages that the commands wrote, by command."""
    root = tmp_path_factory.mktemp("report")
    for name, count in (("fashion-mnist-train", 120), ("fashion-mnist", 12), ("mnist", 12)):
        write_pictures(root / name, name, count)
    photo = Image.fromarray(pixels("photos", 1)[0])
    (root / "mnist" / SCRIPT[0]).mkdir()
    photo.save(root / "mnist" / SCRIPT[0] / SCRIPT[1])
    photo.save(root / "mnist" / IMAGE)
    knn = root / "knn"
    commands = {
        "fit": ("fit", root / "fashion-mnist-train", "--out", knn),
        "score": ("score", root / "mnist", "--detector", knn, "--out", root / "s.jsonl"),
        "evaluate": (
            "evaluate", "--normal", root / "fashion-mnist", "--anomalous", root / "mnist",
            "--detector", "energy", "--guarantee", "l2:0.05", "--samples", 50,
        ),
        "certify": ("certify", "--count", 3, "--n", 50, "--sigma", 0.01, "--out", root / "c.jsonl"),
    }  # fmt: skip
    for name, command in commands.items():
        report = () if name == "fit" else ("--report", root / "pages" / name)
        result = CliRunner().invoke(app, [*map(str, command), *map(str, report)])
        assert result.exit_code == 0, result.output
    return root / "pages"


def browse(page, folder, *options):
    """(the DOM after loading, what the console said, URLs requested by pages)."""
    log = folder / "net.json"
    command = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}", "--disable-background-networking",
        "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr", f"--log-net-log={log}",
        *options, f"file://{page}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    text = log.read_text()
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")
    requested = {
        event["params"]["url"]
        for event in events["events"]
        # What the browser asks for by itself has no page behind it.
        if event.get("params", {}).get("initiator", "not an origin") != "not an origin"
        and "url" in event["params"]
    }
    return done.stdout, console, requested


def seen(page, folder, *options):
    harness = folder / "harness.html"
    content = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    harness.write_text(HARNESS.replace("PAGE", content), encoding="utf-8")
    dom, console, requested = browse(harness, folder, "--dump-dom", *options)
    (found,) = re.findall(r'data-found="([^"]*)"', dom)
    found = json.loads(found.replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">")
                       .replace("&amp;", "&"))  # fmt: skip
    return found, console, requested


@pytest.mark.parametrize("name", ["score", "evaluate", "certify"])
def test_a_page_renders_and_requests_nothing(pages, tmp_path, name):
    page = pages / name / "index.html"
    dom, console, requested = browse(page, tmp_path, "--dump-dom")
    assert "</h1>" in dom and "</svg>" in dom and "How this was made" in dom
    assert console == []
    assert {url for url in requested if not url.startswith(("file:", "data:"))} == set()
    assert re.findall(r"(?:https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", dom)) == []

    screenshot = tmp_path / "page.png"
    browse(page, tmp_path, f"--screenshot={screenshot}", "--window-size=1100,3600")
    pixels = np.asarray(Image.open(screenshot).convert("RGB"))
    assert pixels.shape == (3600, 1100, 3)
    # Cards on the ground, figures in two colours and black pictures: not an empty page.
    for colour in ((245, 247, 249), (42, 111, 151), (0, 0, 0)):
        assert (pixels == colour).all(2).sum() > 500, colour


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["score", "evaluate", "certify"])
def test_a_page_fits_screens_and_phones_in_light_and_dark(pages, tmp_path, name, scheme):
    option = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    found, console, _ = seen(pages / name / "index.html", tmp_path, option)
    assert console == []
    for width in ("1100", "390"):
        one = found[width]
        assert one["title"] and one["overflow"] == one["broken"] == one["scripts"] == 0
        assert one["images"] > 0 and one["figures"] > 0 and one["texts"] > 5
        assert one["cut"] == []
        ground = np.mean([int(n) for n in re.findall(r"\d+", one["ground"])[:3]])
        inks = [np.mean([int(n) for n in re.findall(r"\d+", c)[:3]])
                for c in (one["ink"], *one["drawn"])]  # fmt: skip
        assert ground > 230 if scheme == "light" else ground < 40
        assert all(abs(ink - ground) > 80 for ink in inks)


def test_names_of_files_are_text(pages, tmp_path):
    found, console, _ = seen(pages / "score" / "index.html", tmp_path)
    assert console == []
    for one in found.values():
        assert "/".join(SCRIPT) in one["text"] and IMAGE in one["text"]
        assert one["title"] == "Scores of mnist"


def test_what_the_tests_look_for_is_seen_where_it_is(tmp_path):
    """The control: a page that does what reports must not do."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<!DOCTYPE html><html><head><title>bad</title></head><body style='width:3000px'>"
        "<script>console.error('boo')</script><img src='http://example.com/x.png'>"
        "<svg viewBox='0 0 9 9' width='50'><text x='8'>cut</text></svg></body></html>"
    )
    _, console, requested = browse(page, tmp_path, "--dump-dom")
    assert "boo" in console[0] and "http://example.com/x.png" in requested
    found, _, _ = seen(page, tmp_path)
    one = found["390"]
    assert one["overflow"] > 0 and one["broken"] == 1 and one["scripts"] == 1
    assert one["cut"] == ["cut"]
