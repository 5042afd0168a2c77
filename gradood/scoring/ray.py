"""Scores in Ray Data: a class for ``map_batches``, whose actors hold the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gradood.arguments import checked
from gradood.data.files import IterableSource
from gradood.data.files.opening import by_argument
from gradood.scoring.models import load_model
from gradood.scoring.scores import RowScorer
from gradood.scoring.stream import Stream


@checked
class RayScorer:
    """Adds scores to batches of a Ray data set; each actor loads the model and detector once.

    Give the class itself to ``map_batches``, with these arguments as ``fn_constructor_kwargs``.

    Args:
        detector: File that ``gradood fit`` wrote, or "max-softmax" or "energy".
        model: Keyword arguments of ``gradood.scoring.models.load_model``; ``device="cuda"`` for
            actors with ``num_gpus=1``.
        column: Holds the inputs: arrays, or encoded pictures as bytes. Several, for a model of
            several inputs, are given to it by name; ``"argument=column"`` names another argument.
        layers: How many layers that reacted are named, or 0.
        on_error: "fail", or "skip" for a score of null and a message in the column ``error``.
        batch_size: As of ``Stream``; ``map_batches`` has its own, which bounds it.

    Example:
        >>> data = ray.data.read_parquet("images/").map_batches(               # doctest: +SKIP
        ...     RayScorer, batch_size=256, num_gpus=1, compute=ray.data.ActorPoolStrategy(size=2),
        ...     fn_constructor_kwargs={"detector": "d.safetensors", "model": {"device": "cuda"}})
        >>> data.drop_columns(["image"]).write_parquet("scores/")              # doctest: +SKIP
    """

    def __init__(
        self,
        detector: str,
        *,
        model: Mapping[str, Any] | None = None,
        column: str | Sequence[str] = "image",
        layers: int = 3,
        on_error: Any = "fail",
        batch_size: Any = "auto",
    ) -> None:
        from gradood.scoring.fitting import ready_detector

        loaded = load_model(**(model or {}))
        self._scorer = RowScorer(ready_detector(detector, loaded), layers)
        self._stream = Stream(
            self._scorer, loaded, batch_size=batch_size, on_error=on_error, workers=1
        )
        self._columns = by_argument(column)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the columns score, decision, layers (as JSON) and error."""
        inputs = IterableSource(self._inputs(batch))
        rows = [
            json.loads(line)
            for part in self._stream.run(inputs)
            for line in self._scorer.lines(part)
        ]
        return batch | {
            "score": np.array([_or(row["score"], np.nan) for row in rows], np.float32),
            "decision": np.array([_or(row["decision"], 0) for row in rows], np.int8),
            # Always text, so that blocks without rows have the same column types.
            "layers": np.array([json.dumps(row["layers"]) for row in rows], np.str_),
            "error": np.array([row["error"] or "" for row in rows], np.str_),
        }

    def _inputs(self, batch: Mapping[str, Any]) -> Iterable[Any]:
        columns = [batch[str(name)] for name in self._columns.values()]
        if None in self._columns:
            return map(_content, columns[0])
        rows = zip(*columns, strict=True)
        return (
            {name: _content(value) for name, value in zip(self._columns, row, strict=True)}
            for row in rows
        )


def _content(value: Any) -> Any:
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes | bytearray | memoryview) else np.asarray(value)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
