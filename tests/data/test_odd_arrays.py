"""Arrays and tables as they come, of every type and layout that others write."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from gradood.data.files import as_source, decoded, open_source
from gradood.data.preprocessing import Preprocessing
from tests.data.test_files import PLAIN, npy, png, tar_of
from tests.data.test_odd_files import RANDOM, grey, names, read
from tests.processes import python

ARRAYS = ["<f4", ">f4", ">f8", "<f2", ">f2", ">i4", "<i8", ">u2", "<u4", "?", "i1"]


@pytest.mark.parametrize("dtype", ARRAYS)
def test_arrays_of_every_dtype_alone_and_in_shards(tmp_path, dtype):
    array = (RANDOM.random((2, 1, 28, 28)) * 100).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    np.savez(tmp_path / "x.npz", a=array)
    members = [(f"{i}.npy", npy(row)) for i, row in enumerate(array)]
    for path in (tmp_path / "x.npy", tmp_path / "x.npz", tar_of(tmp_path / "s.tar", members)):
        found = read(path)
        assert [item.error for item in found] == [None, None]
        for item, row in zip(found, array, strict=True):
            assert torch.equal(item.tensor.double(), torch.tensor(row.astype(float)))


def test_arrays_in_python_of_every_layout():
    base = RANDOM.random((28, 28)).astype(np.float32)
    for array in (base, base[::-1], base.T, base[:, ::2], base.astype(">f4"), base.astype("g")):
        (found,) = decoded(as_source([array]).placed(), PLAIN)
        assert found.error is None
        torch.testing.assert_close(found.tensor.float(), torch.tensor(array.astype(np.float32)))
    for array in (np.array(["a"]), np.array([1j]), np.array([object()]), np.zeros(2, "M8[s]")):
        (found,) = decoded(as_source([array]).placed(), PLAIN)
        assert "expected numbers" in found.error


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_encoded_pictures_in_python(kind):
    pixels = grey()[0]
    for value in (kind(png(pixels)), np.frombuffer(png(pixels), np.uint8)):
        (found,) = decoded(as_source([value]).placed(), PLAIN)
        assert torch.equal(found.tensor[0] * 255, torch.from_numpy(pixels).float())


def test_several_arrays_in_one_file(tmp_path):
    with open(tmp_path / "x.npy", "wb") as file:
        for number, shape in enumerate([(2, 1, 28, 28), (3, 28, 28), (1, 28)]):
            np.save(file, np.full(shape, number, np.float32))
    source = open_source([tmp_path / "x.npy"])
    found = read(tmp_path / "x.npy")
    assert [int(item.tensor.flatten()[0]) for item in found] == [0, 0, 1, 1, 1, 2]
    assert names(found) == list("012345") and source.count() == 6
    for start in range(7):
        rest = list(decoded(source.placed((0, start)), PLAIN))
        assert names(rest) == names(found)[start:]
    with open(tmp_path / "x.npy", "ab") as file:
        file.write(b"something else")
    found = read(tmp_path / "x.npy")
    assert len(found) == 7 and "something else" in found[-1].error
    assert source.count() is None


def table(path, **columns):

    pq.write_table(pa.table(columns), path)
    return path


def test_lists_of_bytes_are_pictures(tmp_path):

    pixels = grey(3)
    colour = RANDOM.integers(0, 256, (3, 28, 28, 3), np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    expected = [item.tensor for item in read(tmp_path / "x.npy")]
    for kind in (pa.list_, pa.large_list, lambda inner: pa.list_(inner, 28)):
        column = pa.array(pixels.tolist(), kind(kind(pa.uint8())))
        found = read(table(tmp_path / "x.parquet", x=column))
        assert all(torch.equal(a.tensor, b) for a, b in zip(found, expected, strict=True))
    deep = pa.array(colour.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    transform = Preprocessing(input_size=(3, 28, 28))
    found = read(table(tmp_path / "y.parquet", x=deep), transform)
    assert torch.equal(found[1].tensor * 255, torch.from_numpy(colour[1]).permute(2, 0, 1).float())
    files = pa.array([list(png(a)) for a in pixels], pa.list_(pa.uint8()))
    found = read(table(tmp_path / "z.parquet", x=files))
    assert all(torch.equal(a.tensor, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["int8", "int64", "float16", "float32", "float64", "bool_"])
def test_lists_of_numbers_keep_their_type(tmp_path, kind):

    values = (RANDOM.random((2, 5)) * 100).astype(kind.rstrip("_"))
    column = pa.array([list(row) for row in values], pa.list_(getattr(pa, kind)()))
    found = read(table(tmp_path / "x.parquet", x=column))
    expected = values.astype(np.float32) if kind == "float64" else values
    assert torch.equal(torch.stack([i.tensor for i in found]), torch.from_numpy(expected))


def test_columns_of_one_name_are_named(tmp_path):

    values = pa.array([[1.0, 2.0]])
    twice = pa.Table.from_arrays([values, values, pa.array(["a"])], ["x", "x", "id"])
    pq.write_table(twice, tmp_path / "x.parquet")
    (found,) = read(tmp_path / "x.parquet")
    assert "2 of its columns are called x" in found.error
    ids = pa.Table.from_arrays([values, pa.array(["a"]), pa.array(["b"])], ["x", "id", "id"])
    pq.write_table(ids, tmp_path / "y.parquet")
    (found,) = read(tmp_path / "y.parquet")
    assert found.error is None and names([found]) == ["0"]


RAY = """
import sys, numpy as np, pyarrow as pa, pyarrow.parquet as pq
from ray.data.extensions import ArrowTensorArray, ArrowVariableShapedTensorArray
u = (np.random.default_rng(0).random((4, 28, 28)) * 255).astype(np.uint8)
pq.write_table(pa.table({"image": ArrowTensorArray.from_numpy(u)}), sys.argv[1] + "/f.parquet")
several = np.empty(2, object); several[:] = [u[0], u[1, :20]]
several = ArrowVariableShapedTensorArray.from_numpy(several)
pq.write_table(pa.table({"image": several}), sys.argv[1] + "/v.parquet")
fixed = pa.FixedShapeTensorArray.from_numpy_ndarray(u)
pq.write_table(pa.table({"image": fixed}), sys.argv[1] + "/a.parquet")
from tests.data.test_odd_arrays import shapes
print(shapes(sys.argv[1]))
"""


def shapes(folder):
    transform = Preprocessing(input_size=(1, None, None))
    return [
        [i.error or list(i.tensor.shape) for i in read(f"{folder}/{n}.parquet", transform)]
        for n in "fva"
    ]


def test_tensors_of_ray_and_of_arrow_with_and_without_ray(tmp_path):
    pytest.importorskip("ray")
    done = python("-c", RAY, tmp_path)
    expected = [[[1, 28, 28]] * 4, [[1, 28, 28], [1, 20, 28]], [[1, 28, 28]] * 4]
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(expected)
    code = f"from tests.data.test_odd_arrays import shapes; print(shapes({str(tmp_path)!r}))"
    without = python("-c", code)
    assert without.stdout.strip() == str(expected), without.stderr
