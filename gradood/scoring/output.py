"""Score files that a kill at any moment leaves complete, or able to be gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradood.data.optional import require
from gradood.errors import InputError

if TYPE_CHECKING:
    from gradood.data.files.source import Position

#: Everything that a row says.
COLUMNS = ("id", "score", "decision", "layers", "error")
#: Rows of one group of a Parquet file, and what is held to write it.
_GROUP = 16_384


class ScoreFile:
    """A file of scores in the making: JSON lines, or Parquet by the end of its name.

    Rows go to ``NAME.partial``; then ``NAME.state`` is replaced, which says how many of its bytes
    count, and where the inputs go on. A kill between the two costs the rows since the last state,
    which are computed and written again. The last step gives the file its name.

    Args:
        path: Of the file.
        settings: What scores depend on. A run goes on only under the settings it was begun with.
        resume: Go on with what is there; without it, what a killed run left is an error.

    Raises:
        InputError: An unfinished run is there and is not to be resumed, or has other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], resume: bool) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        self._state_file = path.with_name(path.name + ".state")
        self.state: dict[str, Any] = {
            "settings": json.loads(json.dumps(dict(settings))),
            "bytes": 0,
            "position": [0, 0],
            "limit": 1 << 31,
            "scored": 0,
            "skipped": 0,
        }
        if is_parquet(path):
            require("pyarrow.parquet", "files", "Writing Parquet")
        self.complete = resume and path.exists() and not self._state_file.exists()
        if self._state_file.exists():
            self._take_up(resume)
        if not self.complete:
            self._open()

    @property
    def position(self) -> Position:
        """Where the inputs go on."""
        part, number = self.state["position"]
        return part, number

    def _take_up(self, resume: bool) -> None:
        try:
            found = json.loads(self._state_file.read_text(encoding="utf-8"))
            if found["bytes"] == 0:  # nothing was scored, so nothing is lost by starting again
                return
            if not resume:
                raise InputError(
                    f"{self._state_file} is of a run that did not finish; pass --resume to go on "
                    f"with it, or delete it to start again"
                )
            differing = [
                f"{name} was {found['settings'].get(name)!r}, now {value!r}"
                for name, value in self.state["settings"].items()
                if found["settings"].get(name) != value
            ]
            missing = self.state.keys() - found.keys()
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"cannot read {self._state_file}: {error}; delete it") from error
        if differing or missing:
            raise InputError(
                f"{self.path} was begun with other settings: {'; '.join(differing or missing)}. "
                f"Delete {self._state_file} to start again"
            )
        self.state = found

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            size = self._partial.stat().st_size if self._partial.exists() else 0
            done = self.path.exists() and not self._partial.exists() and self.state["bytes"] > 0
            if size < self.state["bytes"] and not done:
                raise InputError(
                    f"{self._partial} is shorter than {self._state_file} says; delete both to "
                    "start again"
                )
            if done:  # killed after the last step, before the state was removed
                self._state_file.unlink()
                self.complete = True
                return
            self._write_state()  # from here on there is an unfinished run
            self._file = open(self._partial, "ab")
            self._file.truncate(self.state["bytes"])
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error}") from error

    def append(self, lines: Sequence[str], position: Position, limit: int, skipped: int) -> None:
        """Add rows, and remember that the inputs before ``position`` are done."""
        if self.state["bytes"] == 0:
            self.path.unlink(missing_ok=True)  # an old result is not to be taken for this one
        content = "".join(lines).encode()
        self._file.write(content)
        self._file.flush()
        self.state["bytes"] += len(content)
        self.state["position"], self.state["limit"] = list(position), limit
        self.state["scored"] += len(lines) - skipped
        self.state["skipped"] += skipped
        self._write_state()

    def finish(self) -> None:
        """Give the file its name, after turning it into Parquet if that is what it is to be."""
        os.fsync(self._file.fileno())
        self._file.close()
        if is_parquet(self.path):
            made = self.path.with_name(self.path.name + ".making")
            _to_parquet(self._partial, made)
            os.replace(made, self.path)
            self._partial.unlink()
        else:
            os.replace(self._partial, self.path)
        self._state_file.unlink()
        self.complete = True

    def close(self) -> None:
        """Leave the file to be gone on with; what nothing was written to is not left behind."""
        if self.complete:
            return
        self._file.close()
        if self.state["bytes"] == 0:
            self._partial.unlink()
            if not self.path.exists():  # beside an old result, the state says that it is old
                self._state_file.unlink()

    def _write_state(self) -> None:
        made = self._state_file.with_name(self._state_file.name + ".making")
        made.write_text(json.dumps(self.state), encoding="utf-8")
        os.replace(made, self._state_file)


def is_parquet(path: Path) -> bool:
    """Whether a file of this name holds Parquet."""
    return path.suffix.lower() in (".parquet", ".pq")


def read_rows(
    path: Path, columns: Sequence[str] = ("id", "score", "error")
) -> Iterator[dict[str, Any]]:
    """The rows of a finished score file, one at a time.

    Raises:
        InputError: It cannot be read, or is no score file.
    """
    try:
        if is_parquet(path):
            parquet = require("pyarrow.parquet", "files", "Reading Parquet")
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_GROUP, columns=list(columns)):
                    yield from batch.to_pylist()
        else:
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    yield {name: row[name] for name in columns}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"cannot read scores from {path}: {error}") from error


def _to_parquet(source: Path, target: Path) -> None:
    arrow = require("pyarrow", "files", "Writing Parquet")
    parquet = require("pyarrow.parquet", "files", "Writing Parquet")
    layer = arrow.struct([("name", arrow.string()), ("deviation", arrow.float32())])
    schema = arrow.schema(
        [
            ("id", arrow.string()),
            ("score", arrow.float32()),
            ("decision", arrow.int8()),
            ("layers", arrow.list_(layer)),
            ("error", arrow.string()),
        ]
    )
    with parquet.ParquetWriter(target, schema) as writer, open(source, encoding="utf-8") as lines:
        while group := [json.loads(line) for line in islice(lines, _GROUP)]:
            writer.write_table(arrow.Table.from_pylist(group, schema))
