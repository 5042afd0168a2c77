import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.datasets.fashion import DEBIAN_ROOT
from gradood.data import embedded_set


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    sizes = np.array(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def small_fashion_mnist() -> Callable[[Path, bool], Path]:
    """Writes the embedded normal pictures (2000 to train, 500 to test) as Fashion-MNIST files."""

    def write(folder: Path, compressed: bool) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for prefix, name in (("train", "fashion-mnist-train"), ("t10k", "fashion-mnist")):
            data = embedded_set(name)
            assert data.labels is not None
            images = idx_bytes(data.pixels[:, 0].numpy())
            labels = idx_bytes(data.labels.numpy().astype(np.uint8))
            for stem, content in (("images-idx3", images), ("labels-idx1", labels)):
                path = folder / f"{prefix}-{stem}-ubyte{'.gz' if compressed else ''}"
                path.write_bytes(gzip.compress(content) if compressed else content)
        return folder

    return write


@pytest.fixture
def debian_fashion_mnist() -> Path:
    if not DEBIAN_ROOT.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    return DEBIAN_ROOT
