"""Any number of odd files from a seed: names, formats, truncations, sizes, links and modes."""

import bz2
import gzip
import io
import os

import numpy as np
from PIL import Image

from tests.data.test_files import npy, tar_of

STEMS = (
    "a",
    "IMG 2024.01.05",
    ".hidden",
    "caf\u00e9",
    "\u5199\u771f",
    "x" * 120,
    "new\nline",
    "\udcff",
    "-rf",
    "a.b.c",
    "%s",
    "<b>",
    "'quote'",
    "CON",
    "\u202ertl",
    "tab\t",
    "a" + "\u0301" * 5,
)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F")
FORMATS = ("png", "jpg", "jfif", "jpe", "bmp", "gif", "tif", "tiff", "webp", "ppm", "pgm", "apng")
SIZES = ((28, 28), (1, 1), (1, 3000), (30_000, 1), (400, 300), (4000, 3000), (9000, 9000))
#: How likely each size is; the large ones take seconds.
CHANCES = (0.55, 0.1, 0.1, 0.05, 0.16, 0.03, 0.01)


class Odd:
    """Writes odd files below a folder, the same ones for the same seed."""

    def __init__(self, root, seed):
        self.root, self._random, self._number = root, np.random.default_rng(seed), 0

    def write(self, count):
        kinds = [self.picture] * 8 + [self.array] * 3 + [self.shard] * 3 + [self.table] * 2
        kinds += [self.link, self.special, self.nested, self.misnamed]
        for _ in range(count):
            self._number += 1
            self._choose(kinds)()

    def _choose(self, options):
        return options[int(self._random.integers(len(options)))]

    def _path(self, ending, folder="pictures"):
        path = self.root / folder / f"{self._number:04}{self._choose(STEMS)}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _pixels(self, size, channels=0):
        shape = (size[1], size[0], channels) if channels else (size[1], size[0])
        return self._random.integers(0, 256, shape, np.uint8)

    def _encoded(self, ending):
        size = SIZES[int(self._random.choice(len(SIZES), p=CHANCES))]
        mode = self._choose(MODES)
        if mode in ("I;16", "I", "F"):
            kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
            image = Image.fromarray(self._pixels(size).astype(kind))
        elif size[0] * size[1] > 1_000_000:
            image = Image.new(mode, size)
        else:
            image = (
                Image.fromarray(self._pixels(size, 3))
                .convert("RGB")
                .convert(mode if mode not in ("LA",) else "L")
            )
        kind = {
            "jpg": "jpeg",
            "jfif": "jpeg",
            "jpe": "jpeg",
            "tif": "tiff",
            "pgm": "ppm",
            "apng": "png",
        }.get(ending, ending)
        buffer = io.BytesIO()
        try:
            image.save(buffer, kind)
        except (OSError, ValueError, KeyError):  # not every format has every mode and size
            buffer = io.BytesIO()
            image.convert("L").resize((28, 28)).save(buffer, kind)
        return buffer.getvalue()

    def _damaged(self, content):
        """Sometimes cut, sometimes changed, mostly as it is."""
        fate = self._random.random()
        content = bytearray(content)
        if fate < 0.1:
            content = content[: int(self._random.random() * len(content))]
        elif fate < 0.2 and content:
            for place in self._random.integers(0, len(content), 1 + len(content) // 500):
                content[place] = int(self._random.integers(256))
        elif fate < 0.23:
            content += bytes(self._random.integers(0, 256, 700, np.uint8))
        return bytes(content)

    def picture(self):
        ending = self._choose(FORMATS)
        self._path(ending).write_bytes(self._damaged(self._encoded(ending)))

    def _any_array(self):
        shape = self._choose(
            [
                (1, 28, 28),
                (28, 28),
                (28, 28, 3),
                (3, 28, 28),
                (5,),
                (),
                (0, 28, 28),
                (2, 2, 28, 28),
                (1, 28, 29),
                (784,),
            ]
        )
        kind = self._choose(
            ["<f4", ">f4", "<f8", "<f2", "u1", ">i2", "<u2", "?", "<c8", "<U3", "O"]
        )
        values = self._random.random(shape) * 200
        if self._random.random() < 0.1:
            values = np.where(values < 20, np.nan, values)
        with np.errstate(invalid="ignore"):
            return np.asarray(values).astype(kind)

    def array(self):
        path, buffer = self._path(self._choose(["npy", "npz"]), "arrays"), io.BytesIO()
        rows = [self._any_array()] * int(self._random.integers(0, 4))
        for _ in range(int(self._random.integers(1, 3))):
            if path.suffix == ".npz":
                columns = {f"a{i}": np.array(rows) for i in range(int(self._random.integers(0, 3)))}
                np.savez(buffer, **columns)
                break
            np.save(
                buffer, np.asfortranarray(rows) if self._random.random() < 0.1 else np.array(rows)
            )
        path.write_bytes(self._damaged(buffer.getvalue()))

    def _tar(self):
        members = []
        for number in range(int(self._random.integers(0, 5))):
            ending = self._choose(["png", "jpg", "npy", "cls", "json", "seg.png", "01.png", "heic"])
            stem = self._choose([f"s{number}", "s", "d/x", "../up", "/abs", f"é{number}"])
            if ending == "npy":
                content = npy(self._any_array())
            else:
                content = (
                    self._encoded(ending.rpartition(".")[2])
                    if ending[-2:] in ("ng", "pg")
                    else b"1"
                )
            members.append((f"{stem}.{ending}", self._damaged(content)))
        path = tar_of(self.root / "made", members)
        content = path.read_bytes()
        path.unlink()
        return content

    def shard(self):
        content = b"".join(self._tar() for _ in range(int(self._random.integers(1, 4))))
        ending, compress = self._choose(
            [
                ("tar", bytes),
                ("tar.gz", gzip.compress),
                ("tgz", bytes),
                ("tar", gzip.compress),
                ("tar.bz2", bz2.compress),
            ]
        )
        self._path(ending, "shards").write_bytes(self._damaged(compress(content)))

    def table(self):
        import pyarrow as pa
        import pyarrow.parquet as pq

        def cells():
            kind = int(self._random.integers(5))
            if kind == 0:
                return pa.array([self._damaged(self._encoded("png")) for _ in range(2)] + [None])
            if kind == 1:
                return pa.array(
                    [{"bytes": self._encoded("jpg"), "path": "x"}, None, {"bytes": b"no"}]
                )
            if kind == 2:
                inner = pa.list_(pa.list_(pa.uint8()))
                return pa.array(self._random.integers(0, 256, (3, 28, 28)).tolist(), inner)
            if kind == 3:
                return pa.array([[1.0, 2.0], [3.0], None])
            return pa.array(["text", None, "more"])

        names = [self._choose(["image", "x", "id", "other", "label"]) for _ in range(3)]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_arrays([cells() for _ in names], names), buffer)
        self._path("parquet", "tables").write_bytes(self._damaged(buffer.getvalue()))

    def link(self):
        path = self._path("png")
        target = self._choose(
            ["..", ".", path.name, "nowhere", "/dev/zero", "../arrays", "/proc/self/mem"]
        )
        path.symlink_to(target)
        if self._random.random() < 0.3:  # a second way into a folder
            (path.parent / f"{self._number}-linked").symlink_to(self._choose([".", "../shards"]))

    def special(self):
        path = self._path(self._choose(["png", "npy", "tar"]))
        if self._random.random() < 0.5:
            os.mkfifo(path)
        else:
            path.write_bytes(b"")
            os.truncate(path, 1 << 31)  # of zeros, none of them on the disk

    def nested(self):
        folder = (
            self.root / "pictures" / f"{self._number}.png" / self._choose(["deep.tar", "é", "x"])
        )
        folder.mkdir(parents=True)
        (folder / "in.png").write_bytes(self._encoded("png"))
        (folder / "left.txt").write_text("no picture")
        if self._random.random() < 0.5:
            (folder / "in.png").chmod(0)

    def misnamed(self):
        content = self._choose(
            [
                self._encoded("png"),
                self._tar(),
                npy(self._any_array()),
                b"{}",
                b"",
                b"\x80\x04.",
                b"%PDF-1.4",
                b"GIF89a",
                b"\x1f\x8b\x08",
                b"PK\x03\x04",
            ]
        )
        ending = self._choose(
            ["png", "npy", "npz", "tar", "tar.gz", "parquet", "jpg", "txt", "heic"]
        )
        folder = "pictures" if ending in ("png", "jpg", "txt", "heic") else "other"
        self._path(ending, folder).write_bytes(content)


def all_paths(root):
    """What is given to the command: the folder of pictures, and every other file by itself."""
    others = sorted(
        p for name in ("arrays", "shards", "tables", "other") for p in (root / name).glob("*")
    )
    return [root / "pictures", *others]
