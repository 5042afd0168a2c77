"""Files as they should not be: each function returns paths of files that hold no usable input."""

import io
import os
import pickle
import socket
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

from gradood.data import embedded_images


class Executes:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def picture():
    return (embedded_images("mnist")[0, 0] * 255).round().byte().numpy()


def encoded(kind, image=None):
    buffer = io.BytesIO()
    (image or Image.fromarray(picture())).save(buffer, kind)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def pickled(mark):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Executes(mark)], object), allow_pickle=True)
    return buffer.getvalue()


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_of_size(width, height, rows=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(rows)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def header(text, version=(1, 0)):
    text = text.encode()
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text


def pictures(root, mark):
    """Pictures that none of Pillow's decoders reads to the end."""
    png, jpeg = encoded("png"), encoded("jpeg")
    flipped = bytearray(png)
    flipped[60] ^= 255
    contents = {
        "empty.png": b"", "text.png": b"hello", "html.jpg": b"<html>404 Not Found</html>",
        "zeros.png": bytes(1000), "flipped.png": bytes(flipped), "signature.png": png[:8],
        "huge.png": png_of_size(100_000, 100_000), "wide.png": png_of_size(2**31 - 1, 1),
        "nothing.png": png_of_size(0, 0), "no-pixels.png": png_of_size(28, 28),
        "bomb.png": png_of_size(30_000, 30_000, bytes(100_000)),
        "huge.ppm": b"P6 99999 99999 255\n", "negative.ppm": b"P6 -3 -3 255\n",
        "short.ppm": b"P6 28 28 255\nabc", "bad.pgm": b"P5 x y z\n",
        "program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch) run\n",
        "vector.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "float.tiff": encoded("tiff", Image.fromarray(np.ones((9, 9), np.float32))),
        "int.tiff": encoded("tiff", Image.fromarray(np.ones((9, 9), np.int32))),
        "loop.tiff": b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "cut.tiff": encoded("tiff")[:60],
        "cut.gif": encoded("gif")[:40], "cut.webp": encoded("webp")[:50],
        "cut.bmp": encoded("bmp")[:80], "huge.bmp": encoded("bmp")[:18] + b"\xff\xff\xff\x7f" * 9,
        "pickle.png": pickle.dumps(Executes(mark)),
        "caf\udce9.png": b"no picture", "new\nline\x1b[31m.png": b"no picture",
    }  # fmt: skip
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        contents[f"cut{part}.png"] = png[: int(part * len(png))]
        contents[f"cut{part}.jpg"] = jpeg[: int(part * len(jpeg))]
    for name, content in contents.items():
        (root / name).write_bytes(content)
    os.mkfifo(root / "pipe.png")
    (root / "dangling.png").symlink_to(root / "nowhere")
    (root / "circle.png").symlink_to(root / "circle.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "socket.png"))  # the name of a socket must be short
    (root / "device.png").symlink_to("/dev/zero")
    return sorted(root / name for name in os.listdir(root))


def arrays(root, mark):
    """``.npy`` and ``.npz`` of which no row is an input for 1 x 28 x 28 pixels."""
    good = np.zeros((3, 1, 28, 28), np.float32)

    def claiming(shape):
        return header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}")

    contents = {
        "pickle.npy": pickled(mark), "empty.npy": b"", "magic.npy": b"\x93NUMPY",
        "cut-header.npy": npy(good)[:40], "version.npy": header("{}", (9, 0)),
        "code.npy": header("__import__('os').mkdir('x')"), "no-dict.npy": header("[1]"),
        "keys.npy": header("{'descr': '<f4'}"), "negative.npy": claiming("(-1, 4)"),
        "rows.npy": claiming("(1000000000000000, 1, 28, 28)"),
        "row.npy": claiming("(2, 1000000000000)"),
        "overflow.npy": claiming("(1, 4294967296, 4294967296)"),
        "long-header.npy": header("{" + " " * 60_000 + "}"),
        "fortran.npy": npy(np.asfortranarray(np.zeros((28, 28), np.float32))),
        "text.npy": npy(np.array(["a", "b"])), "complex.npy": npy(good.astype(complex)),
        "dates.npy": npy(np.zeros(3, "M8[s]")), "zero-dim.npy": npy(np.float32(1)),
        "fields.npy": npy(np.zeros(3, [("a", "f4"), ("b", "i4")])),
        "nan.npy": npy(good + np.nan), "inf.npy": npy(good + np.inf),
        "channels.npy": npy(np.zeros((2, 3, 28, 28), np.float32)),
        "flat.npy": npy(np.zeros((2, 784), np.float32)), "none.npy": npy(good[:0]),
        "bytes.npy": npy(np.zeros((2, 5, 28, 28), np.uint8)),
        "text.npz": b"hello", "cut.npz": b"PK\x03\x04" + bytes(20),
    }  # fmt: skip
    for name, content in contents.items():
        (root / name).write_bytes(content)
    np.savez(root / "several.npz", a=good, b=good)
    np.savez(root / "objects.npz", allow_pickle=True, x=np.array([Executes(mark)], object))
    with zipfile.ZipFile(root / "other.npz", "w") as archive:
        archive.writestr("hello.txt", "hello")
    noise = np.random.default_rng(0).random((3, 1, 28, 28), np.float32)
    np.savez_compressed(root / "damaged.npz", x=noise)
    content = bytearray((root / "damaged.npz").read_bytes())
    content[150:400] = bytes(250)
    (root / "damaged.npz").write_bytes(content)
    return sorted(root.iterdir())


def tables(root, mark):
    """Parquet files without a usable row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = {
        "column": {"other": [1, 2]}, "null": {"image": pa.nulls(2, pa.binary())},
        "text": {"image": ["a", "b"]}, "ragged": {"x": [[[1.0, 2.0], [3.0]]]},
        "not-pictures": {"image": [b"hello", b"\x89PNG\r\n\x1a\n"]},
        "nan": {"x": [np.full((1, 28, 28), np.nan).tolist()]}, "none": {"x": pa.array([], "f4")},
        "shape": {"x": [np.zeros((5, 5)).tolist()]},
        "pickle": {"image": [pickle.dumps(Executes(mark))]},
        "struct": {"image": [{"bytes": None, "path": "/etc/passwd"}]},
    }  # fmt: skip
    for name, columns in written.items():
        pq.write_table(pa.table(columns), root / f"{name}.parquet")
    whole = (root / "nan.parquet").read_bytes()
    (root / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (root / "empty.parquet").write_bytes(b"")
    (root / "footer.parquet").write_bytes(b"PAR1" + bytes(50) + b"\xff\xff\xff\x7fPAR1")
    damaged = bytearray(whole)
    damaged[4:200] = b"\xff" * 196
    (root / "page.parquet").write_bytes(damaged)
    return sorted(root.iterdir())


def shards(root, mark):
    """Tar files without a usable member."""
    png = encoded("png")
    plain = {
        "up": ("../../outside.png", png), "absolute": ("/tmp/outside.png", png),
        "picture": ("a.png", b"hello"), "pickle": ("a.npy", pickled(mark)),
        "nan": ("a.npy", npy(np.full((1, 28, 28), np.nan))), "other": ("a.txt", b"hello"),
        "bytes": ("caf\udce9.png", b"hello"),
    }  # fmt: skip
    for name, (member, content) in plain.items():
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    kinds = {"symlink": tarfile.SYMTYPE, "link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE,
             "pipe": tarfile.FIFOTYPE}  # fmt: skip
    for name, kind in kinds.items():
        with tarfile.open(root / f"{name}.tar", "w") as archive:
            info = tarfile.TarInfo("a.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with tarfile.open(root / "nothing.tar", "w"):
        pass
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 40
    (root / "size.tar").write_bytes(info.tobuf() + bytes(2048))
    (root / "text.tar").write_bytes(b"hello" * 200)
    (root / "empty.tar").write_bytes(b"")
    whole = (root / "up.tar").read_bytes()
    (root / "cut.tar").write_bytes(whole[:600])
    (root / "zip.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(100))
    (root / "plain.tgz").write_bytes(whole[:1000])
    return sorted(root.iterdir())


def others(root, mark):
    """A folder without pictures, and one with a name that is no text."""
    (root / "empty").mkdir()
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "notes.txt").write_text("no picture")
    named = root / "caf\udce9"
    named.mkdir()
    (named / "\udcff\udcfe.png").write_bytes(b"no picture")
    return sorted(root.iterdir())
