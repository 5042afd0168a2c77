"""Read NumPy arrays from a pickle without letting the pickle call anything else."""

import io
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from gradood.errors import InputError


def _encoded(text: str, encoding: str) -> bytes:
    """How old protocols write bytes."""
    if encoding != "latin1":
        raise InputError(f"Refused to unpickle a text as {encoding}: bytes are written as latin1.")
    return text.encode(encoding)


# What the pickle of an array refers to. The values are taken from an array itself, so that nothing
# is looked up by the name which stands in the file, and both spellings of NumPy's module work.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _encoded,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise InputError(
                f"Refused to unpickle {module}.{name}: only plain NumPy arrays are read from this "
                "file. It is damaged, or was replaced by something else."
            ) from None


def load_pickled_array(content: bytes) -> npt.NDArray[np.generic]:
    """The NumPy array that ``content`` pickles.

    Raises:
        InputError: The pickle refers to anything but a NumPy array of numbers, or is damaged.
    """
    array = load_pickled_arrays(content)
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise InputError(f"Expected a pickled NumPy array of numbers, got {type(array).__name__}.")
    return array


def load_pickled_arrays(content: bytes) -> Any:
    """What ``content`` pickles: NumPy arrays, numbers and texts, in lists and dicts.

    Raises:
        InputError: The pickle refers to anything else, or is damaged.
    """
    try:
        # Python 2 wrote the bytes of an array as text of this encoding.
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except InputError:
        raise
    # Damaged pickles raise almost any exception: the machine they run on is made of the file.
    except Exception as error:
        raise InputError(f"The pickle is damaged ({type(error).__name__}: {error}).") from error
