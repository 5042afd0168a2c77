"""Files as they come: each input is read, or named with what is wrong; nothing is left out."""

import bz2
import gzip
import io
import logging
import lzma
import os

import numpy as np
import pytest
import torch
from PIL import Image

from gradood.data.files import decoded, open_source
from gradood.data.files.pictures import _FORMATS, SUFFIXES, Room
from gradood.data.preprocessing import Preprocessing
from tests.data.test_files import PLAIN, npy, png, tar_of
from tests.processes import python

RANDOM = np.random.default_rng(0)


def grey(count=1):
    return RANDOM.integers(0, 256, (count, 28, 28), np.uint8)


def read(path, transform=PLAIN, **options):
    return list(decoded(open_source([path], **options).placed(), transform, workers=2))


def names(found):
    return [item.id.rpartition(":")[2] for item in found]


def test_every_ending_of_the_formats_that_are_read_is_known():
    from PIL import Image as pillow

    pillow.init()
    known = {e for e, kind in pillow.registered_extensions().items() if kind in _FORMATS}
    assert known - {".fax", ".g3", ".webp", ".tiff"} <= SUFFIXES  # the first two hold no header


@pytest.mark.parametrize("ending", ["jpg", "JPG", "jpeg", "jpe", "jfif", "jif", "Jfif"])
def test_jpeg_by_every_name(tmp_path, ending):
    Image.fromarray(grey()[0]).save(tmp_path / f"a.b.{ending}", "jpeg")
    assert [item.error for item in read(tmp_path)] == [None]
    assert [item.error for item in read(tmp_path / f"a.b.{ending}")] == [None]


SIXTEEN = {
    "pgm": lambda a: b"P5 28 28 65535\n" + a.astype(">u2").tobytes(),
    "pnm": lambda a: b"P5\n# made by hand\n28 28\n65535\n" + a.astype(">u2").tobytes(),
    "plain.pgm": lambda a: b"P2 28 28 65535\n" + " ".join(map(str, a.flatten())).encode(),
    "png": lambda a: encoded(a, "png"),
    "tiff": lambda a: encoded(a, "tiff"),
}


def encoded(array, kind):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", SIXTEEN)
def test_sixteen_bits(tmp_path, kind):
    values = RANDOM.integers(0, 65536, (28, 28)).astype(np.uint16)
    (tmp_path / f"a.{kind}").write_bytes(SIXTEEN[kind](values))
    (found,) = read(tmp_path)
    assert found.error is None
    assert torch.equal(found.tensor[0] * 255, torch.from_numpy((values >> 8).astype(np.float32)))


def test_twelve_bits_fill_the_same_range(tmp_path):
    values = np.full((28, 28), 4095, ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 28 28 4095\n" + values.tobytes())
    assert read(tmp_path)[0].tensor.min() == 1


def test_linked_folders_and_pictures_are_read(tmp_path, caplog):
    real, folder = tmp_path / "real", tmp_path / "folder"
    (real / "in").mkdir(parents=True)
    folder.mkdir()
    (real / "in" / "a.png").write_bytes(png(grey()[0]))
    (folder / "linked").symlink_to(real)
    (folder / "b.png").symlink_to(real / "in" / "a.png")
    (real / "in" / "up").symlink_to("..")
    (real / "in" / "self").symlink_to("self")
    with caplog.at_level(logging.WARNING, "gradood"):
        found = read(folder)
    assert [item.id for item in found] == ["b.png", "linked/in/a.png"]
    assert all(item.error is None for item in found)
    assert "1 links to folders that they lie in (linked/in/up)" in caplog.text
    assert "linked/in/self" in caplog.text
    assert open_source([folder]).count() == 2


def test_what_is_no_picture_is_counted_and_named(tmp_path, caplog):
    (tmp_path / "a.png").write_bytes(png(grey()[0]))
    for name in ("1.heic", "2.HEIC", "3.heic", "4.heic", "notes.txt", "README", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "gradood"):
        assert len(read(tmp_path)) == 1
    (said,) = caplog.messages
    assert (
        "4 .heic files (1.heic, 2.HEIC, 3.heic, …)" in said and "1 .txt files (notes.txt)" in said
    )
    assert "2 files whose names have no ending (.DS_Store, README)" in said


DOTTED = ["a.png", "IMG_2024.01.05.png", ".hidden.png", "d/v1.2/x.jpg", "ä.é.png", "a.b.c.d.npy"]


@pytest.mark.parametrize("name", DOTTED)
def test_dots_in_members_names(tmp_path, name):
    content = npy(grey()[0]) if name.endswith("npy") else png(grey()[0])
    (found,) = read(tar_of(tmp_path / "s.tar", [(name, content)]))
    assert found.error is None


def test_dotted_pictures_of_one_name_are_each_named(tmp_path):
    members = [(f"2024.01.{day:02}.png", png(grey()[0])) for day in range(5)]
    shard = tar_of(tmp_path / "s.tar", members)
    found = read(shard)
    assert names(found) == [name for name, _ in members]
    assert all("several inputs" in item.error for item in found)
    found = read(shard, column="*.png")
    assert names(found) == [name for name, _ in members]
    assert all(item.error is None for item in found)


@pytest.mark.parametrize("second", ["jpg", "seg.png", "npy", "2.jpg"])
def test_several_inputs_a_sample_are_an_error(tmp_path, second):
    picture = Image.fromarray(grey()[0])
    contents = {"png": png(grey()[0]), "npy": npy(grey()[0])}
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg")
    content = contents.get(second.rpartition(".")[2], buffer.getvalue())
    members = [("a.png", png(grey()[0])), ("a.cls", b"1"), (f"a.{second}", content)]
    members += [("b.png", png(grey()[0])), ("b.cls", b"2")]
    found = read(tar_of(tmp_path / "s.tar", members))
    assert [bool(item.error) for item in found] == [True, True, False]
    assert all(f"png, {second}" in item.error for item in found[:2])
    found = read(tar_of(tmp_path / "t.tar", members), column="png")
    assert names(found) == ["a", "b"] and not any(item.error for item in found)


def test_samples_without_an_input_are_counted_and_named(tmp_path, caplog):
    members = [("a.png", png(grey()[0])), ("a.cls", b"1"), ("b.heic", b"x"), ("b.cls", b"2")]
    with caplog.at_level(logging.WARNING, "gradood"):
        assert names(read(tar_of(tmp_path / "s.tar", members))) == ["a"]
    assert "1 .heic files (b.heic); 1 .cls files (b.cls)" in caplog.text


COMPRESSED = {"tar": bytes, "tar.gz": gzip.compress, "tar.bz2": bz2.compress,
              "tar.xz": lzma.compress}  # fmt: skip


def archives(tmp_path, count):
    for number in range(count):
        members = [(f"{number}{letter}.png", png(grey()[0])) for letter in "ab"]
        yield tar_of(tmp_path / f"{number}.part", members).read_bytes()


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("whole", [True, False], ids=["compressed whole", "compressed each"])
def test_archives_one_after_another(tmp_path, ending, whole):
    parts, compress = list(archives(tmp_path, 3)), COMPRESSED[ending]
    content = compress(b"".join(parts)) if whole else b"".join(map(compress, parts))
    path = tmp_path / f"x.{ending}"
    path.write_bytes(content)
    found = read(path)
    assert names(found) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert not any(item.error for item in found)
    (tmp_path / "y.tar").write_bytes(content)  # whatever it is called
    assert names(read(tmp_path / "y.tar")) == names(found)


def test_damage_between_members_is_named(tmp_path):
    first, second = archives(tmp_path, 2)
    whole = bytearray(first + second)
    begin = whole.index(b"0b.png")
    whole[begin : begin + 512] = b"\x07" * 512
    (tmp_path / "x.tar").write_bytes(whole)
    found = read(tmp_path / "x.tar")
    assert names(found)[0] == "0a" and "damaged, or no archive" in found[-1].error
    (tmp_path / "y.tar").write_bytes(first + b"\x07" * 700)
    found = read(tmp_path / "y.tar")
    assert names(found)[:2] == ["0a", "0b"] and "damaged, or no archive" in found[-1].error


def test_an_archive_without_its_end_is_said(tmp_path, caplog):
    content = next(archives(tmp_path, 1))
    (tmp_path / "x.tar").write_bytes(content[: content.index(b"0b.png")])
    with caplog.at_level(logging.WARNING, "gradood"):
        assert names(read(tmp_path / "x.tar")) == ["0a"]
    assert "no end mark" in caplog.text


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000), (9_000, 20), (20, 9_000)])
@pytest.mark.parametrize("kind", ["bilinear", "bicubic", "lanczos"])  # "nearest" has ties
def test_thin_pictures_are_what_resizing_them_whole_gives(size, kind, monkeypatch):
    pixels = RANDOM.integers(0, 256, (size[1], size[0]), np.uint8)
    image = Image.fromarray(pixels)
    transform = Preprocessing(input_size=(1, 12, 10), crop_pct=0.9, interpolation=kind)
    whole = transform(image)
    monkeypatch.setattr("gradood.data.preprocessing._LARGE", 0)
    found = transform(image)
    assert (found - whole).abs().max() <= 1.01 / 255


def test_thin_pictures_take_little_memory(tmp_path):
    Image.new("L", (30_000, 1)).save(tmp_path / "a.png")
    Image.new("L", (1, 9_000_000)).save(tmp_path / "b.png")
    code = f"""
import resource
from pathlib import Path
from tests.data.test_odd_files import Preprocessing, read
used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29),) * 2)
for name in "ab":
    (found,) = read({str(tmp_path)!r} + f"/{{name}}.png", Preprocessing(input_size=(3, 224, 224)))
    print(found.error or list(found.tensor.shape))
"""
    done = python("-c", code)
    assert done.stdout.split("\n")[:2] == ["[3, 224, 224]"] * 2, done.stderr


def test_room_is_shared_and_given_back():
    import threading

    room, most, now, lock = Room(100), 0, 0, threading.Lock()

    def work(size):
        nonlocal most, now
        for _ in range(50):
            with room.shared():
                room.take(size)
                with lock:
                    now += min(size, 100)
                    most = max(most, now)
                with lock:
                    now -= min(size, 100)

    threads = [threading.Thread(target=work, args=(size,)) for size in (10, 60, 60, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and most <= 100
    room.take(1000)  # outside, nothing waits


def test_names_that_nobody_may_read_are_said(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    (tmp_path / "a.npy").write_bytes(npy(grey()))
    os.chmod(tmp_path / "a.npy", 0)
    assert "Permission denied" in read(tmp_path / "a.npy")[0].error
