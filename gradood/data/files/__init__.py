"""Inputs from files of any size, one at a time, in order, each with an identifier.

Nothing in a file is ever executed or unpacked to disk, and what is wrong with one input is said of
that input and stops no other.
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
