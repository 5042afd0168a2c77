"""Outputs: complete or as they were, whatever they are and whoever else writes."""

import multiprocessing
import os
import stat
import subprocess
import sys
import threading

import pytest

from gradood.errors import InputError
from gradood.writing import Output, write_file


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"\0\xff", "text äöü\n", b"", b"x" * 3_000_000])
def test_a_file_holds_what_was_written(tmp_path, content):
    path = tmp_path / "new" / "er" / "file"
    write_file(path, content)
    data = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == data and names(path.parent) == ["file"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_modes_are_those_of_the_umask_or_of_the_old_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_file(tmp_path / "new", "x")
        (tmp_path / "old").write_text("old")
        os.chmod(tmp_path / "old", 0o604)
        write_file(tmp_path / "old", "x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")]
    assert modes == [0o666 & ~mask, 0o604]


def test_links_are_followed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "target").write_text("old")
    (tmp_path / "link").symlink_to("store/target")
    (tmp_path / "second").symlink_to("link")
    (tmp_path / "dangling").symlink_to("store/new")
    (tmp_path / "folder").symlink_to("store")
    for name, target in (("second", "target"), ("dangling", "new"), ("folder/third", "third")):
        write_file(tmp_path / name, name)
        assert (tmp_path / "store" / target).read_text() == name
    assert all((tmp_path / n).is_symlink() for n in ("link", "second", "dangling", "folder"))
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="cannot write to .*circle"):
        Output(tmp_path / "circle")


def test_pipes_and_devices_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_file(tmp_path / "pipe", b"x" * 300_000)
    reader.join(10)
    assert found == [b"x" * 300_000] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    write_file("/dev/null", "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("where", ["pipe", "file"])
def test_standard_output_is_appended_to(tmp_path, path, where):
    code = f"import sys; from gradood.writing import write_file as w; print('before', flush=True)\nw({path!r}, 'rows\\n'); print('after')"  # noqa: E501
    if where == "pipe":
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "before\nrows\nafter\n", done.stderr
        return
    with open(tmp_path / "out", "w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "before\nrows\nafter\n"


def test_what_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("gradood.writing._READER", 0.05)
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for path, said in {
        tmp_path: "is a folder",
        tmp_path / "file" / "x": "cannot write",
        tmp_path / "file" / "x" / "y": "cannot write",
        tmp_path / ("n" * 300): "File name too long",
        "/proc/nowhere": "cannot write",
    }.items():
        with pytest.raises(InputError, match=said):
            Output(path)
    with pytest.raises(InputError, match="nobody reads"):
        write_file(tmp_path / "pipe", "x")
    with pytest.raises(InputError, match="No space left on device"):
        write_file("/dev/full", "x")
    assert names(tmp_path) == ["file", "pipe"]


@pytest.mark.skipif("os.geteuid() == 0", reason="root may change every file")
def test_a_file_that_may_not_be_changed_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    os.chmod(tmp_path / "file", 0o444)
    with pytest.raises(InputError, match="may not be changed"):
        Output(tmp_path / "file")


@pytest.mark.parametrize("size", [3_000_000, 20_000])
def test_a_full_disk_leaves_the_older_file(tmp_path, size):
    (tmp_path / "file").write_text("older\n")
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
from gradood.errors import InputError
from gradood.writing import write_file
try:
    write_file({str(tmp_path / "file")!r}, b"x" * {size})
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "File too large" in done.stdout, done.stderr
    assert (tmp_path / "file").read_text() == "older\n" and names(tmp_path) == ["file"]


def test_one_writer_at_a_time(tmp_path):
    (tmp_path / "link").symlink_to("file")
    with Output(tmp_path / "file") as first:
        for name in ("file", "link"):
            with pytest.raises(InputError, match="another process is writing"):
                Output(tmp_path / name)
        first.write("x")
    with Output(tmp_path / "link") as second:
        second.write("y")
    assert (tmp_path / "file").read_text() == "y"
    assert names(tmp_path) == ["file", "link"]


def test_a_lock_ends_with_its_process(tmp_path):
    code = f"import os; from gradood.writing import Output; o = Output({str(tmp_path / 'f')!r}); os._exit(9)"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert names(tmp_path) == ["f.lock"]
    write_file(tmp_path / "f", "x")
    assert names(tmp_path) == ["f"]


def _many(path, letter):
    for _ in range(100):
        write_file(path, letter * 10_000)


def test_many_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_many, args=(path, letter)) for letter in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(100)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert path.read_text() in {letter * 10_000 for letter in "abc"}
    assert names(tmp_path) == ["file"]
