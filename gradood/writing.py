"""Files that are written: complete or left as they were, by one writer at a time."""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from gradood.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self

try:
    import fcntl
except ImportError:  # Windows refuses by itself to replace a file that another process has open
    fcntl = None  # type: ignore[assignment]

_LOG = logging.getLogger("gradood")

#: Seconds that a pipe is given to find a reader, and a short write to find its turn.
_READER, _TURN = 5.0, 10.0
#: What the name of a file in the making ends in: beside the file, so that it can be renamed.
WRITING, LOCK = ".writing", ".lock"


class Output:
    """A path that one process writes to, claimed before the work that fills it.

    A regular file is replaced in one step by a complete one, which has the mode and owner of the
    old file, or, if there was none, a mode by the umask. Links are followed, missing folders made.
    Pipes, devices and ``/dev/stdout`` are written to as they are.

    Args:
        path: Where to write.
        wait: Seconds to wait for another writer.

    Attributes:
        target: The file itself, where ``path`` is a link.
        is_stream: Whether what is written is gone at once, so that nothing can be replaced.

    Raises:
        InputError: The path cannot be written to, or another process writes to it.
    """

    def __init__(self, path: str | Path, wait: float = 0.0) -> None:
        self.path = Path(path)
        self._release: Callable[[], object] = _nothing
        with sentence(self.path):
            self.descriptor = _descriptor(str(path))
            self.is_stream = self._check_kind()
            self.target = self.path if self.is_stream else Path(os.path.realpath(path))
            if not self.is_stream:
                self._claim(wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, content: bytes | str) -> None:
        """Make ``content`` what the file holds.

        Raises:
            InputError: It cannot be written; an older file is still there.
        """
        data = content.encode() if isinstance(content, str) else content
        if self.is_stream:
            with sentence(self.path), self.open_stream() as stream:
                write_all(stream, data)
            return
        partial = self.beside(WRITING)
        try:
            with sentence(self.path):
                partial.unlink(missing_ok=True)  # of a killed run, with a mode of its own
                with open(partial, "wb", buffering=0) as file:
                    write_all(file, data)
                    os.fsync(file.fileno())
            self.replace(partial)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def replace(self, made: Path) -> None:
        """Give a complete file, which lies beside the target, the target's name."""
        with sentence(self.path):
            with suppress(FileNotFoundError):
                old = os.stat(self.target)
                os.chmod(made, stat.S_IMODE(old.st_mode))
                if hasattr(os, "chown"):
                    with suppress(PermissionError):  # who may not give it away keeps it
                        os.chown(made, old.st_uid, old.st_gid)
            os.replace(made, self.target)

    @property
    def is_stdout(self) -> bool:
        """Whether it is this process's standard output."""
        if not self.is_stream:
            return False
        with suppress(OSError):
            given = os.fstat(self.descriptor) if self.descriptor is not None else self.path.stat()
            return os.path.samestat(given, os.fstat(1))
        return False

    def beside(self, ending: str) -> Path:
        """A name in the target's folder, on its file system."""
        return self.target.with_name(self.target.name + ending)

    def open_stream(self) -> io.FileIO:
        """The pipe or device, unbuffered; closing it leaves ``/dev/stdout`` open.

        Raises:
            InputError: Nobody reads from the pipe.
        """
        if self.descriptor is not None:
            return io.FileIO(os.dup(self.descriptor), "wb")
        return io.FileIO(_opened(self.path), "wb")

    def close(self) -> None:
        """Let others write; happens by itself when nothing refers to the output, or at the end."""
        self._release()

    def _check_kind(self) -> bool:
        try:
            found = os.fstat(self.descriptor) if self.descriptor is not None else self.path.stat()
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(found.st_mode):
            raise InputError(f"cannot write to {self.path}: it is a folder; give a file's name")
        named_socket = stat.S_ISSOCK(found.st_mode) and self.descriptor is None
        if stat.S_ISBLK(found.st_mode) or named_socket:
            raise InputError(f"cannot write to {self.path}: it is a socket or a whole device")
        return self.descriptor is not None or not stat.S_ISREG(found.st_mode)

    def _claim(self, wait: float) -> None:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise InputError(
                f"cannot write to {self.path}: {self.target.parent} is no folder"
            ) from error
        if self.target.exists() and not os.access(self.target, os.W_OK):
            raise PermissionError(errno.EACCES, "it is there, and may not be changed")
        lock = self.beside(LOCK)
        self._release = weakref.finalize(self, _release, lock, _lock(lock, self.path, wait))


def write_file(path: str | Path, content: bytes | str) -> None:
    """Write a file at once, after any other writer; see ``Output``."""
    with Output(path, wait=_TURN) as output:
        output.write(content)


def write_all(file: io.FileIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take less than all at once."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


@contextmanager
def sentence(path: Path) -> Iterator[None]:
    """What the system says of a file as an ``InputError``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {path}: {error.strerror or error}") from error


def _descriptor(path: str) -> int | None:
    """The open file that a path such as ``/dev/stdout`` stands for."""
    own = {"/dev/fd", os.path.realpath("/proc/self/fd")}
    for _ in range(40):  # links that the system follows
        folder, name = os.path.split(path)
        if name.isdecimal() and os.path.realpath(folder) in own:
            return int(name)
        if not os.path.islink(path):
            return None
        path = os.path.join(folder, os.readlink(path))
    return None


def _opened(path: Path) -> int:
    """A pipe or device, open to write; a pipe that nobody reads would be waited for for ever."""
    deadline = time.monotonic() + _READER
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            os.set_blocking(descriptor, True)
            return descriptor
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > deadline:
                raise InputError(f"cannot write to {path}: nobody reads from the pipe") from error
        time.sleep(0.01)


def _lock(path: Path, target: Path, wait: float) -> int:
    """An open file that is this process's alone until it is closed, or the process ends."""
    deadline = time.monotonic() + wait
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _taken(descriptor) and _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise InputError(
                f"cannot write to {target}: another process is writing to it; wait for it, or "
                "choose another name"
            )
        time.sleep(0.01)


def _release(path: Path, descriptor: int) -> None:
    with suppress(OSError):
        path.unlink()  # while it is ours
    os.close(descriptor)


def _nothing() -> None:
    """What is to be done for a pipe, which is not locked."""


def _taken(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        _LOG.warning("the file system has no locks: nothing keeps a second writer away")
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file was not removed, by its last owner, before the lock was taken."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False
