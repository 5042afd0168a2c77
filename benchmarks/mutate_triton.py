"""Plant faults in the Triton kernels and see whether the checks notice.

    python benchmarks/mutate_triton.py --out benchmarks/results/mutations_triton.md

Every fault is one edit of one kernel file. The changed kernels run in the interpreter on the same
calls as ``tests/kernels``, in poisoned memory; a fault is killed when a norm is off by more than
the tests allow, is NaN, or the kernel fails. The score is committed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402

from benchmarks.kernel_calls import CALLS, Call, poisoned, relative_error  # noqa: E402
from gradood import pending  # noqa: E402
from gradood.benchmarking.operators import noise_checks, vote_checks  # noqa: E402
from gradood.kernels import conv3x3, prepared  # noqa: E402
from gradood.kernels.interpreter import shuffled  # noqa: E402
from gradood.kernels.layout import Geometry  # noqa: E402
from gradood.ops import triton_backend  # noqa: E402

KERNELS = Path(__file__).parents[1] / "kernels"
#: In the order in which they import one another.
FILES = (
    "reduction",
    "layout",
    "outer",
    "gram",
    "conv",
    "conv3x3",
    "pixel_gram",
    "depthwise",
    "affine",
    "token_norm",
    "noise",
    "votes",
)
TOLERANCE = 2e-6


class Mutation(NamedTuple):
    """One fault: what it is, the file, the text, its replacement, the calls that should notice."""

    fault: str
    file: str
    old: str
    new: str
    calls: tuple[str, ...]


MUTATIONS = (
    Mutation("outer: tokens not masked in d", "outer",
             "mask=(p < P)[:, None] & (t < T)[None, :]",
             "mask=(p < P)[:, None] & (t < T + 1)[None, :]",
             ("outer", "outer, several tiles")),
    Mutation("outer: columns not masked in x", "outer",
             "mask=(t < T)[:, None] & (q < Q)[None, :]",
             "mask=(t < T)[:, None] & (q < Q + 1)[None, :]",
             ("outer", "outer, several tiles")),
    Mutation("outer: accumulator reset in the loop", "outer",
             "tl.dot(d_block, x_block, gradient, input", "tl.dot(d_block, x_block, input",
             ("outer", "outer, one column")),
    Mutation("outer: bias of the wrong tiles", "outer",
             "if tile % tiles_q == 0:", "if tile == 0:", ("outer, several tiles",)),
    Mutation("outer: second sample reads the first", "outer",
             "x_tile = x + sample * x_n", "x_tile = x + 0 * sample * x_n", ("outer",)),
    Mutation("rank one: x not squared", "outer",
             "x_norm += value * value", "x_norm += value", ("rank one",)),
    Mutation("gram: tiles off the diagonal count once", "gram",
             "twice = tl.where(i == j, 1.0, 2.0)", "twice = tl.where(i == j, 1.0, 1.0)",
             ("gram, several tiles",)),
    Mutation("gram: triangle decoded wrongly for even sizes", "gram",
             "j = tl.where(below, column, blocks - even - column)",
             "j = tl.where(below, column, blocks - column)",
             ("gram, two tiles",)),
    Mutation("gram: samples of a tile mix", "gram",
             "same = (place // ROOM)[:, None] == (place // ROOM)[None, :]",
             "same = (place // ROOM)[:, None] >= (place // ROOM)[None, :]",
             ("gram, seven samples in two tiles",)),
    Mutation("gram: last samples of a tile dropped", "gram",
             "inside = (sample < N) & (t < T)", "inside = (sample < N - 1) & (t < T)",
             ("gram, seven samples in two tiles",)),
    Mutation("gram: inner dimension not masked on the diagonal", "gram",
             "mask=inside[:, None] & (k < size)[None, :]",
             "mask=inside[:, None] & (k <= size)[None, :]",
             ("gram, several tiles",)),
    Mutation("gram: one load for tiles off the diagonal", "gram",
             "if ONCE and i == j:\n        of_d", "if ONCE:\n        of_d",
             ("gram, several tiles",)),
    Mutation("embedding: padding counts", "gram",
             "& (index_t != padding)[:, None]", "& (index_t != padding - 1)[:, None]",
             ("embedding, padding",)),
    Mutation("conv: right edge off by one", "conv",
             "return h * W + w, (h >= 0) & (h < H) & (w >= 0) & (w < W)",
             "return h * W + w, (h >= 0) & (h < H) & (w >= 0) & (w <= W)",
             ("conv", "shift-gram", "depthwise")),
    Mutation("conv: left edge not checked", "conv",
             "return h * W + w, (h >= 0) & (h < H) & (w >= 0) & (w < W)",
             "return h * W + w, (h >= 0) & (h < H) & (w < W)", ("conv", "depthwise")),
    Mutation("conv: dilation of the wrong axis", "conv",
             "h = t // OW * SH - PH + tap_h * DH", "h = t // OW * SH - PH + tap_h * DW",
             ("conv, strided and dilated",)),
    Mutation("conv: stride of the wrong axis", "conv",
             "w = t % OW * SW - PW", "w = t % OW * SH - PW", ("conv, strided and dilated",)),
    Mutation("conv: depth not checked", "conv",
             "inside = (depth >= 0) & (depth < D) &", "inside = (depth < D) &",
             ("conv, 3d wide", "depthwise, 3d")),
    Mutation("conv: taps in another order than channels", "conv",
             "        tap = q // group_inputs\n", "        tap = q // (group_inputs + 1)\n",
             ("stem",)),
    Mutation("conv: groups read the first group's inputs", "conv",
             "+ (group * group_inputs + channel)[None, :]", "+ channel[None, :]",
             ("conv, groups", "stem, groups")),
    Mutation("conv: pixels of a row left out", "layout",
             "t // width * row + t % width * step", "t // width * row + t % width",
             ("pointwise, strided, many tokens", "pointwise, strided, a few tokens")),
    Mutation("three by three: right edge off by one", "conv3x3",
             "(column < W)", "(column <= W)", ("three by three",)),
    Mutation("three by three: left edge not checked", "conv3x3",
             "(column >= 0) & ", "", ("three by three",)),
    Mutation("three by three: rows above not checked", "conv3x3",
             "(row >= 0) & ", "", ("three by three",)),
    Mutation("three by three: last rows left out", "conv3x3",
             "pixels = T + 2 * DH * OW", "pixels = T + DH * OW", ("three by three",)),
    Mutation("three by three: the next sample's pixels", "conv3x3",
             "((t >= 0) & (t < T))", "(t >= 0)", ("three by three",)),
    Mutation("three by three: dilation of the wrong axis", "conv3x3",
             "t - DH * OW", "t - DW * OW", ("three by three",)),
    Mutation("three by three: a tap twice", "conv3x3",
             "tl.dot(d2, x1, g21", "tl.dot(d2, x0, g21", ("three by three",)),
    Mutation("three by three: groups read the first group's inputs", "conv3x3",
             "(group * group_inputs + q)", "(q)", ("three by three",)),
    Mutation("shift-gram: upper triangle not written", "pixel_gram",
             "    if i != j:\n", "    if i < j:\n", ("shift-gram, several tiles",)),
    Mutation("shift-gram: last tap missing", "pixel_gram",
             "for tap in range(KH * KW):", "for tap in range(KH * KW - 1):", ("shift-gram",)),
    Mutation("depthwise: taps beyond the kernel count", "depthwise",
             "& (tap < KW)[None, :]", "& (tap <= KW)[None, :]", ("depthwise",)),
    Mutation("depthwise: channels of a multiplier swapped", "depthwise",
             "(c * MULTIPLIER + copy)[None, :]", "(c * MULTIPLIER)[None, :]",
             ("depthwise, multiplier",)),
    Mutation("norms: mean not subtracted", "affine",
             "                x_tile -= centre\n", "                x_tile -= 0 * centre\n",
             ("layer norm", "batch norm (3, 17, 41)")),
    Mutation("norms: token mask off by one", "affine",
             "(place_t < tokens) & (t < T)", "(place_t < tokens) & (t <= T)",
             ("batch norm (1, 33, 2101)",)),
    Mutation("norms: programs of a sample overlap", "affine",
             "(place_t < tokens) & (t < T)", "(place_t <= tokens) & (t < T)",
             ("batch norm (1, 33, 2101)",)),
    Mutation("norms: the gradient is not scaled", "affine",
             "(d_tile * scales)", "(d_tile)", ("batch norm backward (3, 17, 41)",)),
    Mutation("tokens: variance is the mean square", "token_norm",
             "x_tile = tl.where(inside, x_tile - mean[:, None], 0.0)",
             "x_tile = tl.where(inside, x_tile, 0.0)", ("layer norm",)),
    Mutation("tokens: masked channels count in the variance", "token_norm",
             "x_tile = tl.where(inside, x_tile - mean[:, None], 0.0)",
             "x_tile = x_tile - mean[:, None]", ("layer norm",)),
    Mutation("tokens: programs of a sample overlap", "token_norm",
             "(place < tokens) & (t < T)", "(place <= tokens) & (t < T)",
             ("layer norm, several programs",)),
    Mutation("tokens: no deviation where there is no token", "token_norm",
             "tl.where(t_inside, tl.sum(x_tile * x_tile, axis=1) / width + eps, 1.0)",
             "tl.sum(x_tile * x_tile, axis=1) / width + eps", ("RMS norm of any size",)),
    Mutation("tokens: the mean of the gradient flows on", "token_norm",
             "            if CENTRED:\n                flows = flows -",
             "            if not CENTRED:\n                flows = flows -",
             ("layer norm backward (3, 17, 41)", "RMS norm backward (3, 17, 41)")),
    Mutation("norms: statistics of the wrong group", "affine",
             "sample * groups + c // (C // groups)", "sample * groups + c % groups",
             ("group norm",)),
    Mutation("statistics: variance counts the masked", "affine",
             "squares += tl.where(mask, value * value, 0.0)", "squares += value * value",
             ("layer norm", "group norm")),
    Mutation("sum: last block of partial sums missing", "reduction",
             "for start in range(0, columns, BLOCK):", "for start in range(0, columns - 1, BLOCK):",
             ("conv", "outer")),
    Mutation("sum: reads into the bias", "reduction",
             "mask=column < columns, other", "mask=column <= columns, other",
             ("outer", "conv")),
    Mutation("sum: programs of a sample squared one by one", "reduction",
             "value += tl.load(place, mask=column < columns, other=0.0)",
             "value = tl.load(place, mask=column < columns, other=0.0)",
             ("layer norm, several programs", "batch norm (1, 33, 2101)")),
    Mutation("sum: results that waited lie where another's do", "reduction",
             "row = partial + before * samples", "row = partial + 0 * before * samples",
             ("held",)),
    Mutation("noise: lanes exchanged", "noise",
             "tl.join(tl.join(n0, n2), tl.join(n1, n3))",
             "tl.join(tl.join(n0, n1), tl.join(n2, n3))",
             ("noise",)),
    Mutation("noise: another order of operations", "noise",
             "return s * (half_square + r) +", "return s * half_square + s * r +",
             ("noise",)),
    Mutation("noise: another input's stream", "noise",
             "image = tl.load(inputs + copy)", "image = tl.load(rows + copy)", ("noise",)),
    Mutation("votes: the last maximum wins", "votes",
             "better = largest > best", "better = largest >= best", ("votes",)),
    Mutation("votes: NaN is a vote", "votes",
             "winner = tl.where(bad > 0, C, winner)", "winner = tl.where(bad > 1, C, winner)",
             ("votes",)),
)  # fmt: skip


def main() -> None:
    """Plant every fault, and write the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="part of a fault's name")
    chosen = parser.parse_args()
    torch.use_deterministic_algorithms(True)  # new memory holds NaN
    begin, lines, survived = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory() as folder, shuffled(seed=7):
        assert not any(sign for sign in _signs(sorted({c for m in MUTATIONS for c in m.calls})))
        for index, mutation in enumerate(m for m in MUTATIONS if chosen.only in m.fault):
            _load(mutation, Path(folder) / str(index))
            sign = next(filter(None, _signs(mutation.calls)), None)
            if sign is None:
                survived.append(mutation.fault)
            lines.append(f"| {mutation.fault} | {sign or '**survived**'} |")
            print(lines[-1], flush=True)
    score = f"{len(lines) - len(survived)} of {len(lines)} faults killed"
    print(f"{score}, {time.perf_counter() - begin:.0f} s")
    if chosen.out is not None:
        head = ["# Faults planted in the Triton kernels", "", f"{score}, in the interpreter.", ""]
        table = ["| fault | killed by |", "| --- | --- |", *lines]
        again = ["", "Again: `TRITON_INTERPRET=1 python benchmarks/mutate_triton.py --out …`."]
        chosen.out.write_text("\n".join([*head, *table, *again]) + "\n")
    sys.exit(1 if survived else 0)


def _load(mutation: Mutation, folder: Path) -> None:
    """Run all kernel files again, one of them changed, in the modules that hold them."""
    folder.mkdir()
    for name in FILES:
        source = (KERNELS / f"{name}.py").read_text()
        if name == mutation.file:
            assert source.count(mutation.old) >= 1, f"{mutation.fault}: the text is not there"
            source = source.replace(mutation.old, mutation.new)
        path = folder / f"{name}.py"
        path.write_text(source)
        module = importlib.import_module(f"gradood.kernels.{name}")
        exec(compile(source, str(path), "exec"), module.__dict__)
    prepared.forget()


def _signs(names: tuple[str, ...] | list[str]) -> Iterator[str]:
    """What each call shows of a fault; nothing if it is right."""
    for name in names:
        try:
            yield _special[name]() if name in _special else _norm(name)
        except Exception as error:
            yield f"{name}: {type(error).__name__}"


def _norm(name: str) -> str:
    call = CALLS[name].map(poisoned)
    error = relative_error(call, lambda c: getattr(triton_backend, c.op)(*c.arguments))
    return "" if error < TOLERANCE else f"{name}: error {error:.0e}"


def _failed(checks: Callable[..., Iterator]) -> str:  # type: ignore[type-arg]
    found = checks(triton_backend, "cpu")
    return next((f"{c.name}: {c.detail}" for c in found if not c.passed), "")


def _three_by_three() -> str:
    names = ("conv", "conv, several tiles", "conv, three by three groups",
             "conv, dilated, wider than the image")  # fmt: skip
    for name in names:
        x, d, *geometry, groups, bias = CALLS[name].map(poisoned).arguments
        of = Geometry.of(*geometry, groups)
        error = relative_error(CALLS[name], lambda _: conv3x3.prepare(x, d, of, bias).both(x, d))  # noqa: B023
        if not error < TOLERANCE:
            return f"{name}: error {error:.0e}"
    return ""


def _held() -> str:
    sums: dict[Any, pending.Sums] = {}
    names = ("stem", "conv")

    def run(call: Call) -> Any:
        return getattr(triton_backend, call.op)(*call.arguments)

    with pending.held(sums):
        found = {name: run(CALLS[name]) for name in names}
    pending.finish(sums)
    errors = {name: relative_error(CALLS[name], lambda _: found[name]) for name in names}  # noqa: B023
    return next((f"{n}: error {e:.0e}" for n, e in errors.items() if not e < TOLERANCE), "")


_special = {
    "three by three": _three_by_three,
    "held": _held,
    "noise": lambda: _failed(noise_checks),
    "votes": lambda: _failed(vote_checks),
}

if __name__ == "__main__":
    main()
