"""Inputs from files of any size, one at a time, in order, each with an identifier.

Nothing in a file is executed or unpacked to disk. An error belongs to one input and does not stop
the others.
"""

from gradood.data.files.decoding import Decoded, decoded, first_inputs, named_inputs
from gradood.data.files.opening import as_source, open_source
from gradood.data.files.source import Item, IterableSource, Source

__all__ = [
    "Decoded",
    "Item",
    "IterableSource",
    "Source",
    "as_source",
    "decoded",
    "first_inputs",
    "named_inputs",
    "open_source",
]
