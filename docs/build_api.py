"""Write ``docs/api.md``: the docstrings of everything public, as one Markdown page.

python docs/build_api.py
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
#: Modules whose ``__all__`` is public, or the names that are.
MODULES: dict[str, tuple[str, ...]] = {
    "gradood.gradients": (),
    "gradood.detectors": (),
    "gradood.evaluation": (),
    "gradood.smoothing": (),
    "gradood.attacks": (),
    "gradood.distro": (),
    "gradood.data": (),
    "gradood.data.preprocessing": ("Preprocessing",),
    "gradood.scoring.models": ("load_model", "LoadedModel"),
    "gradood.scoring.ray": ("RayScorer",),
    "gradood.integrations.pytorch_ood": ("pytorch_ood_detector",),
    "gradood.integrations.openood": ("openood_postprocessor",),
    "gradood.errors": (
        "GradoodError",
        "InputError",
        "ModelError",
        "BackendError",
        "NotFittedError",
        "CheckpointError",
    ),
}
_HEAD = """# API reference

For everyone who imports gradood: everything public, from the docstrings. `python docs/build_api.py`
writes this page. Names of `gradood` itself need no longer import: `import gradood`, then
`gradood.gradient_norms`. Examples run as tests; in them `model` is a classifier in eval mode, and
`normal`, `anomalies` and `images` are batches of inputs.

"""
_SECTION = re.compile(
    r"^(Args|Attributes|Returns|Raises|Yields|Example|Examples|Source):[ \n]", re.M
)
_ENTRY = re.compile(r"^    (\*{0,2}\w[\w, ]*): ", re.M)


def page() -> str:
    """The whole page."""
    contents, chapters = [], []
    for module, names in MODULES.items():
        found = import_module(module)
        contents.append(f"* [`{module}`](#{module.replace('.', '')})")
        chapters.append(f"## {module}\n\n{_markdown(inspect.getdoc(found) or '')}")
        chapters += [
            _entry(module, name) for name in sorted(names or _public(found), key=str.lower)
        ]
    return _HEAD + "\n".join(contents) + "\n\n" + "\n\n".join(chapters) + "\n"


def _public(module: Any) -> list[str]:
    modules = {n for n, v in vars(module).items() if inspect.ismodule(v)}
    return getattr(module, "__all__", [n for n in vars(module) if n[0] != "_" and n not in modules])


def _entry(module: str, name: str) -> str:
    """One function, class or constant."""
    from gradood import __all__ as public

    thing = getattr(import_module(module), name)
    path = f"gradood.{name}" if name in public else f"{module}.{name}"
    if not callable(thing):
        return f"### {path}\n\n`{name} = {thing!r}`"
    parts = [f"### {path}", f"`{name}{_signature(thing)}`", _markdown(inspect.getdoc(thing) or "")]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        parts += _members(thing)
    return "\n\n".join(parts)


def _members(kind: type) -> Iterator[str]:
    """Public methods and properties that are the class's own."""
    for name, member in vars(kind).items():
        member = getattr(member, "__func__", member)
        documented = inspect.getdoc(member) if inspect.isroutine(member) else None
        if isinstance(member, property):
            documented = inspect.getdoc(member)
        if name.startswith("_") or not documented:
            continue
        signature = "" if isinstance(member, property) else _signature(member)
        yield f"**`{kind.__name__}.{name}{signature}`**\n\n{_markdown(documented)}"


def _signature(thing: Any) -> str:
    """Parameters and defaults, without types: these stand in the text."""
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return "(…)"
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    bare = [p for p in bare if p.name != "self"]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def _markdown(text: str) -> str:
    """A Google-style docstring as Markdown."""
    text = re.sub(r":\w+:`([^`]*)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r" *# doctest: .*", "", text)
    head, *sections = _split(text)
    return "\n\n".join([_literal(head.strip()), *(_section(*section) for section in sections)])


def _split(text: str) -> list[Any]:
    """What comes before the first section, then (title, body) of each."""
    starts = [*_SECTION.finditer(text), None]
    parts: list[Any] = [text[: starts[0].start()] if starts[0] else text]
    for this, following in zip(starts, starts[1:], strict=False):
        assert this is not None
        parts.append((this[1], text[this.end() : following and following.start()]))
    return parts


def _section(title: str, body: str) -> str:
    if title.startswith("Example"):
        return f"```pycon\n{inspect.cleandoc(body)}\n```"
    if title == "Source" or not _ENTRY.search(body):
        return f"*{title}*: {_literal(inspect.cleandoc(body))}"
    entries = _ENTRY.split(body)[1:]
    lines = [
        f"* `{name}`: {' '.join(what.split())}"
        for name, what in zip(entries[::2], entries[1::2], strict=True)
    ]
    return f"*{title}*\n\n" + "\n".join(lines)


def _literal(text: str) -> str:
    """An indented block after ``::`` is code already; only the colons are reStructuredText's."""
    return text.replace("::\n", ":\n")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
