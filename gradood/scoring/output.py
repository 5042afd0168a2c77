"""Score files that are complete or can be resumed, whenever the process is killed."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradood.data.files import Source
from gradood.data.optional import require
from gradood.errors import InputError
from gradood.scoring import resuming
from gradood.scoring.rows import check_format, is_parquet, read_ids, read_rows, to_parquet
from gradood.writing import Output, sentence, write_all

if TYPE_CHECKING:
    from gradood.data.files.source import Position


def open_scores(
    path: Path, settings: Mapping[str, Any], inputs: Sequence[str], resume: bool
) -> ScoreFile | ScorePipe:
    """Where scores go: a file in the making, or a pipe.

    Scores depend on the settings; a run goes on only under those it was begun with. Without
    ``resume`` what a killed run left is an error.
    """
    check_format(path)
    output = Output(path)
    try:
        if output.is_stream:
            return ScorePipe(output, resume)
        return ScoreFile(output, settings, inputs, resume)
    except BaseException:
        output.close()
        raise


class ScorePipe:
    """Scores as JSON lines to a pipe or a device; cannot be resumed.

    Attributes:
        state: How many inputs are "scored" and "skipped", and the "limit" of a batch.
    """

    complete = False

    def check_finished(self, source: Source) -> None:
        """A pipe never is."""

    @property
    def is_stdout(self) -> bool:
        """Whether the rows are this process's standard output."""
        return self._output.is_stdout

    def __init__(self, output: Output, resume: bool) -> None:
        if resume:
            raise InputError(f"{output.path} is no file, so there is nothing to --resume")
        if is_parquet(output.path):
            raise InputError(f"{output.path} is no file; pipes take JSON lines, not Parquet")
        self._output, self.path = output, output.path
        self.state: dict[str, Any] = {"limit": 1 << 31, "scored": 0, "skipped": 0}
        with sentence(self.path):
            self._file = output.open_stream()

    def rest(self, source: Source) -> tuple[Source, Position]:
        """All inputs."""
        return source, (0, 0)

    def append(self, lines: Sequence[str], position: Position, limit: int, skipped: int) -> None:
        """Write rows."""
        with sentence(self.path):
            write_all(self._file, "".join(lines).encode())
        self.state["limit"] = limit
        self.state["scored"] += len(lines) - skipped
        self.state["skipped"] += skipped

    def finish(self) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Close the pipe."""
        self._file.close()
        self._output.close()


class ScoreFile:
    """A file of scores in the making; see ``open_scores``.

    Rows go to ``NAME.partial``; then ``NAME.state`` is replaced, which says how many of its bytes
    count, and where the inputs go on. A kill between the two costs the rows since the last state,
    which are computed and written again. The last step gives the file its name; until then an older
    file of this name is as it was.
    """

    is_stdout = False

    def __init__(
        self, output: Output, settings: Mapping[str, Any], inputs: Sequence[str], resume: bool
    ) -> None:
        self._output, self.path = output, output.path
        self._partial, self._state_file, self._making = map(
            output.beside, (".partial", ".state", ".making")
        )
        self.state: dict[str, Any] = {
            "settings": json.loads(json.dumps(dict(settings))),
            "inputs": list(inputs),
            "relative": resuming.relative(list(inputs)),
            "files": {},
            "by_id": False,
            "bytes": 0,
            "position": [0, 0],
            "limit": 1 << 31,
            "scored": 0,
            "skipped": 0,
            "finished": False,
        }
        if is_parquet(self.path):
            require("pyarrow.parquet", "files", "Writing Parquet")
        self.complete = resume and output.target.exists() and not self._state_file.exists()
        self._file: io.FileIO | None = None
        with sentence(self.path):
            if self._state_file.exists():
                self._take_up(resume)
            if self.state["finished"]:  # and killed before all that belongs to it was done
                self._name()
            elif not self.complete:
                self._open()

    @property
    def position(self) -> Position:
        """Where the inputs go on, if they are known by their places."""
        part, number = self.state["position"]
        return part, number

    def rest(self, source: Source) -> tuple[Source, Position]:
        """The remaining inputs, and the position in them to begin at.

        Inputs with names are identified by name, also after others were added, removed or
        reordered. Rows of files are identified by position.
        """
        now = resuming.stamps(source)
        resuming.check_unchanged(self.state["files"], now)
        self.state["files"] |= now
        if self.state["bytes"] == 0 or (resuming.is_numbered(source) and not self.state["by_id"]):
            return source, self.position
        self.state["by_id"] = True
        return resuming.Remaining(source, read_ids(self._partial, self.state["bytes"])), (0, 0)

    def check_finished(self, source: Source) -> None:
        """Count the rows of a finished file, and refuse one that lacks inputs of the source."""
        rest = resuming.Remaining(source, self._counted())
        first = next(iter(rest.items()), None)
        if first is not None:
            raise InputError(
                f"{self.path} is finished, but has no row for {first.id}: inputs were added since. "
                "Score them into another file, or all again without --resume"
            )

    def _counted(self) -> Iterator[str]:
        """The identifiers in the finished file."""
        for row in read_rows(self._output.target):
            self.state["scored" if row["error"] is None else "skipped"] += 1
            yield row["id"]

    def _take_up(self, resume: bool) -> None:
        try:
            found = json.loads(self._state_file.read_text(encoding="utf-8"))
            if found["bytes"] == 0:  # nothing was scored, so nothing is lost by starting again
                return
            missing = self.state.keys() - found.keys()
            differing = [] if missing else self._differences(found)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InputError(f"cannot read {self._state_file}: {error}; delete it") from error
        if not resume:
            raise InputError(
                f"{self._state_file} is of a run that did not finish; pass --resume to go on "
                f"with it, or delete it to start again"
            )
        if differing or missing:
            raise InputError(
                f"{self.path} was begun with other settings: {'; '.join(differing or missing)}. "
                f"Delete {self._state_file} to start again"
            )
        if found["inputs"] != self.state["inputs"]:
            found |= {"by_id": True, "inputs": self.state["inputs"]}
        self.state = found

    def _differences(self, found: Mapping[str, Any]) -> list[str]:
        before, now = dict(found["settings"]), dict(self.state["settings"])
        # Names with full paths identify inputs; those relative to one folder do not.
        alone = found["relative"] or self.state["relative"] or now.get("world", 1) > 1
        if alone:
            before["inputs"], now["inputs"] = found["inputs"], self.state["inputs"]
        return [
            f"{name} was {before.get(name)!r}, now {value!r}"
            for name, value in now.items()
            if before.get(name) != value
        ]

    def _open(self) -> None:
        size = self._partial.stat().st_size if self._partial.exists() else 0
        if size < self.state["bytes"]:
            raise InputError(
                f"{self._partial} is shorter than {self._state_file} says; delete both to "
                "start again"
            )
        self._write_state()  # from here on there is an unfinished run
        self._file = io.FileIO(self._partial, "ab")
        self._file.truncate(self.state["bytes"])

    def append(self, lines: Sequence[str], position: Position, limit: int, skipped: int) -> None:
        """Add rows, and remember that the inputs before ``position`` are done."""
        assert self._file is not None
        content = "".join(lines).encode()
        with sentence(self.path):
            write_all(self._file, content)
            self.state["bytes"] += len(content)
            self.state["position"], self.state["limit"] = list(position), limit
            self.state["scored"] += len(lines) - skipped
            self.state["skipped"] += skipped
            self._write_state()

    def finish(self) -> None:
        """Give the file its name, after turning it into Parquet if that is what it is to be."""
        assert self._file is not None
        with sentence(self.path):
            os.fsync(self._file.fileno())
            self._file.close()
            self.state["finished"] = True
            self._write_state()
            self._name()

    def _name(self) -> None:
        """The last steps; after a kill between any two of them they are repeated."""
        if self._partial.exists():
            if is_parquet(self.path):
                to_parquet(self._partial, self._making)
                self._output.replace(self._making)
                self._partial.unlink()
            else:
                self._output.replace(self._partial)
        self._state_file.unlink()
        self.complete = True

    def close(self) -> None:
        """Leave the file to be resumed; remove files without content."""
        if self._file is not None:
            self._file.close()
        if not self.complete and self._file is not None:
            with suppress(OSError):
                for made in (self._making, self._making_state):
                    made.unlink(missing_ok=True)
                if self.state["bytes"] == 0:
                    self._partial.unlink(missing_ok=True)
                    if not self._output.target.exists():  # else it says that the result is old
                        self._state_file.unlink(missing_ok=True)
        self._output.close()

    @property
    def _making_state(self) -> Path:
        return self._state_file.with_name(self._state_file.name + ".making")

    def _write_state(self) -> None:
        self._making_state.write_text(json.dumps(self.state), encoding="utf-8")
        os.replace(self._making_state, self._state_file)
