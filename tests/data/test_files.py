"""Every kind of file gives the same inputs, in order, from any start, and shares them out."""

import io
import itertools
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from gradood.data import embedded_images
from gradood.data.files import as_source, decoded, first_inputs, open_source
from gradood.data.preprocessing import Preprocessing, preprocessing, read_preprocessing
from gradood.errors import InputError
from gradood.text import printable

COUNT = 7
PLAIN = Preprocessing(input_size=(1, 28, 28))


@pytest.fixture(scope="module")
def pixels():
    return (embedded_images("mnist")[:COUNT] * 255).round().byte().numpy()[:, 0]


@pytest.fixture(scope="module")
def expected(pixels):
    return torch.from_numpy(pixels)[:, None] / 255


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def folder(path, pixels):
    (path / "a" / "b").mkdir(parents=True)
    for i, array in enumerate(pixels):
        (path / ("a/b" if i < 3 else "a") / f"{'x' if i < 3 else 'y'}{i}.png").write_bytes(
            png(array)
        )
    (path / "a" / "notes.txt").write_text("no picture")
    return path


def plain_npy(path, pixels):
    np.save(path / "x.npy", (pixels / np.float32(255))[:, None])
    return path / "x.npy"


def big_endian_npy(path, pixels):
    np.save(path / "x.npy", (pixels / np.float32(255))[:, None].astype(">f4"))
    return path / "x.npy"


def bytes_npz(path, pixels):
    np.savez_compressed(path / "x.npz", only=pixels)
    return path / "x.npz"


def encoded_parquet(path, pixels, structured=False):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [png(a) for a in pixels]
    images = [{"bytes": row, "path": None} for row in rows] if structured else rows
    table = pa.table({"image": images, "path": [f"p{i}" for i in range(COUNT)]})
    pq.write_table(table, path / "x.parquet", row_group_size=3)
    return path / "x.parquet"


def structured_parquet(path, pixels):
    return encoded_parquet(path, pixels, True)


def nested_parquet(path, pixels):
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = (pixels / np.float32(255))[:, None].tolist()
    pq.write_table(pa.table({"other": [1] * COUNT, "x": values}), path / "x.parquet")
    return path / "x.parquet"


def tensor_parquet(path, pixels):
    import pyarrow as pa
    import pyarrow.parquet as pq

    array = np.empty((COUNT, 1, 28, 28), np.float32)  # Arrow minds the strides of a view
    array[:] = (pixels / np.float32(255))[:, None]
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(array)
    pq.write_table(pa.table({"input": column}), path / "x.parquet")
    return path / "x.parquet"


def tar_of(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def plain_tar(path, pixels):
    samples = ((f"s{i}.png", png(a)) for i, a in enumerate(pixels))
    labelled = (
        (name, content) for s in samples for name, content in (s, (s[0][:-3] + "cls", b"1"))
    )
    return tar_of(path / "x.tar", labelled)


def compressed_tar(path, pixels):
    arrays = ((f"s{i}.npy", npy(a)) for i, a in enumerate(pixels))
    return tar_of(path / "x.tar.gz", arrays, "w:gz")


KINDS = [
    *(folder, plain_npy, big_endian_npy, bytes_npz, encoded_parquet, structured_parquet),
    *(nested_parquet, tensor_parquet, plain_tar, compressed_tar),
]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def path(request, tmp_path, pixels):
    return request.param(tmp_path, pixels)


def read(source, start=(0, 0)):
    return list(decoded(source.placed(start), PLAIN, workers=2))


def test_inputs_come_as_they_were_written(path, expected):
    found = read(open_source([path]))
    assert [item.error for item in found] == [None] * COUNT
    torch.testing.assert_close(torch.stack([item.tensor for item in found]), expected)
    assert len({item.id for item in found}) == COUNT
    assert open_source([path]).count() in (COUNT, None)


def test_any_start_gives_the_rest(path):
    source = open_source([path])
    everything = read(source)
    for item, following in itertools.pairwise(everything):
        rest = read(source, item.after)
        assert [r.id for r in rest][0] == following.id
        assert [r.id for r in rest] == [i.id for i in everything[-len(rest) :]]
    assert read(source, everything[-1].after) == []


def test_processes_share_inputs_without_repeating_one(path):
    whole = [item.id for item in read(open_source([path]))]
    shares = [open_source([path], rank=r, world=3) for r in range(3)]
    found = [[item.id for item in read(share)] for share in shares]
    assert sorted(itertools.chain(*found)) == sorted(whole)
    assert all(share.count() in (len(ids), None) for share, ids in zip(shares, found, strict=True))
    rest = read(shares[1], read(shares[1])[0].after)
    assert [item.id for item in rest] == found[1][1:]


def test_several_paths_are_shared_out_whole(tmp_path, pixels):
    paths = []
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        paths.append(plain_npy(tmp_path / str(number), pixels[: number + 1]))
    chain = open_source(paths)
    assert chain.count() == 15 and len({item.id for item in read(chain)}) == 15
    second = read(open_source(paths, rank=1, world=2))
    assert [item.id for item in second] == [
        *(f"{paths[1]}:{i}" for i in range(2)),
        *(f"{paths[3]}:{i}" for i in range(4)),
    ]
    everything = read(chain)
    for place in (0, 1, 5, 13):
        rest = read(chain, everything[place].after)
        assert [item.id for item in rest] == [item.id for item in everything[place + 1 :]]


def test_a_shard_of_the_webdataset_package(tmp_path, pixels, expected):
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        for i, array in enumerate(pixels):
            writer.write({"__key__": f"k{i}", "png": Image.fromarray(array), "cls": i})
    found = read(open_source([tmp_path / "x.tar"]))
    torch.testing.assert_close(torch.stack([item.tensor for item in found]), expected)
    assert found[2].id == f"{tmp_path / 'x.tar'}:k2"


def test_a_column_names_the_input(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", first=pixels[:2], second=pixels[2:])
    assert "--column: first, second" in read(open_source([tmp_path / "x.npz"]))[0].error
    assert len(read(open_source([tmp_path / "x.npz"], column="second"))) == COUNT - 2
    members = [("a.left.png", png(pixels[0])), ("a.right.png", png(pixels[1]))]
    shard = tar_of(tmp_path / "x.tar", members)
    both = read(open_source([shard]))
    assert all("--column" in item.error and "left.png, right.png" in item.error for item in both)
    assert [item.id for item in both] == [f"{shard}:a.left.png", f"{shard}:a.right.png"]
    found = read(open_source([shard], column="right.png"))
    assert torch.equal(found[0].tensor[0], torch.from_numpy(pixels[1]) / 255)
    every = read(open_source([shard], column="*.png"))
    assert [item.id for item in every] == [item.id for item in both]
    assert torch.equal(every[0].tensor[0], torch.from_numpy(pixels[0]) / 255)


def test_iterables_and_datasets_are_sources(expected, pixels):
    named = [(f"n{i}", Image.fromarray(a)) for i, a in enumerate(pixels)]
    for given in (expected, list(expected), pixels, named, iter(list(pixels))):
        found = read(as_source(given))
        torch.testing.assert_close(torch.stack([item.tensor for item in found]), expected)
    assert [item.id for item in read(as_source(named))] == [f"n{i}" for i in range(COUNT)]
    with pytest.raises(InputError, match="cannot read inputs from int"):
        as_source(3)


def test_reading_ahead_is_bounded():
    drawn = itertools.count()

    def endless():
        while True:
            yield torch.zeros(1 << 20) + next(drawn)  # 4 MB

    inputs = decoded(as_source(endless()).placed(), PLAIN, workers=2)
    for number in range(20):
        assert int(next(inputs).tensor[0]) == number
    inputs.close()
    assert next(drawn) <= 20 + 40  # 128 MiB ahead


def test_first_inputs_are_stacked(path, expected):
    torch.testing.assert_close(first_inputs(open_source([path]), PLAIN, 3), expected[:3])


@pytest.mark.parametrize("arguments", [([],), (["missing.npy"],)])
def test_nothing_to_read_is_an_error(arguments):
    with pytest.raises(InputError):
        open_source(*arguments)


def test_names_of_any_bytes_become_text():
    assert printable(b"caf\xe9\x1b[31m.png".decode("utf-8", "surrogateescape")) == (
        "caf\\xe9\\x1b[31m.png"
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_the_channels_asked_for(tmp_path, mode):
    image = Image.new(mode, (9, 5)) if mode != "I;16" else Image.fromarray(
        np.full((5, 9), 65_535, np.uint16)
    )  # fmt: skip
    image.save(tmp_path / ("x.tiff" if mode == "CMYK" else "x.png"))
    for channels in (1, 3):
        found = read_one(tmp_path, Preprocessing(input_size=(channels, None, None)))
        assert found.shape == (channels, 5, 9)
        assert found.max() == (1 if mode == "I;16" else found.max())


def read_one(path, transform):
    (item,) = decoded(open_source([path]).placed(), transform)
    assert item.error is None
    return item.tensor


def test_preprocessing_is_that_of_timm():
    timm_data = pytest.importorskip("timm.data")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 201, 3), np.uint8))
    config = {
        "input_size": [3, 96, 96], "crop_pct": 0.875, "interpolation": "bicubic",
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3],
    }  # fmt: skip
    theirs = timm_data.create_transform(**config, is_training=False)
    ours = preprocessing({"pretrained_cfg": config, "architecture": "resnet18"})
    for side in (picture, picture.rotate(90, expand=True), picture.resize((50, 60))):
        torch.testing.assert_close(ours(side), theirs(side))


@pytest.mark.parametrize(
    "text",
    ["{", "missing.json", "{}", '{"std": 0}', '{"input_size": [2, 8, 8]}', '{"mean": [1, 2]}',
     '{"crop_pct": 2}', '{"interpolation": "magic"}', '{"input_size": 3}', "[1]"],
)  # fmt: skip
def test_preprocessing_that_means_nothing_is_an_error(text):
    with pytest.raises(InputError):
        read_preprocessing(text)
