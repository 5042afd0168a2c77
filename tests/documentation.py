"""The code blocks of Markdown pages: how they are found, and how they run."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import gradood

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Pages whose links are checked, and whose commands are not run: they install and release.
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "csrc/README.md", "kernels/README.md")]

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
_MARKER = re.compile(r"<!-- not run: ((?:(?!-->).)+) -->\s*\Z", re.S)
_FILE = re.compile(r"# (\S+\.py)\n")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: What stands behind the fence.
        code: What stands between the fences.
        line: Where the code begins, from 1.
        why_not: Why it does not run: ``<!-- not run: REASON -->`` right before it; or None.
    """

    language: str
    code: str
    line: int
    why_not: str | None


def blocks(page: Path) -> Iterator[Block]:
    """All of them, in order."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        marker = _MARKER.search(text, 0, found.start())
        line = text.count("\n", 0, found.start()) + 2
        yield Block(found[1], found[2], line, marker and marker[1])


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures, outside code."""
    text = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """What links to headings of a page may say after ``#``, by GitHub's rules."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
        name = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def run(page: Path, folder: Path) -> list[str]:
    """Run a page's blocks in order, in ``folder``, which is the current one; what they printed.

    Python blocks share a namespace; one whose first line is ``# NAME.py`` is saved under that name
    instead. ``sh`` blocks run in Bash, with the ``gradood`` and ``python`` of this interpreter, and
    must succeed. ``text`` blocks are what the block before printed: every line, but for numbers and
    the width of columns. ``mermaid`` is drawn by the site.
    """
    scope: dict[str, object] = {"__name__": "__main__"}
    printed = [""]
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.why_not is not None:
            continue
        if block.language == "python":
            printed.append(_python(block, where, scope, folder))
        elif block.language == "sh":
            printed.append(shell(block.code, where, folder))
        elif block.language == "text":
            shown = {_shape(line) for line in printed[-1].splitlines()}
            for line in filter(str.strip, block.code.splitlines()):
                assert _shape(line) in shown, f"{where}: {line!r} is not in\n{printed[-1]}"
        elif block.language != "mermaid":
            raise AssertionError(f"{where}: blocks are python, sh or text, not {block.language}")
    return printed[1:]


def _python(block: Block, where: str, scope: dict[str, object], folder: Path) -> str:
    if named := _FILE.match(block.code):
        (folder / named[1]).write_text(block.code, encoding="utf-8")
        return ""
    with redirect_stdout(io.StringIO()) as output:
        # Blank lines, so that a traceback names the page's own.
        exec(compile("\n" * (block.line - 1) + block.code, where, "exec"), scope)
    return output.getvalue()


def shell(code: str, where: str, folder: Path) -> str:
    """Run Bash commands in ``folder``; what they printed."""
    outside = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment = outside | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(gradood.__file__).parents[1]),
        "COLUMNS": "100",
    }
    with open(folder / ".output", "w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", code], cwd=folder, env=environment,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(timeout=900)
        finally:
            try:  # what the block left running, too
                os.killpg(process.pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        output.seek(0)
        text = output.read()
    assert status == 0, f"{where}: exit status {status}\n{text}"
    return text


def _shape(line: str) -> str:
    return " ".join(_NUMBER.sub("0", line).split())
