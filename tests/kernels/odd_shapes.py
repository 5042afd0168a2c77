"""Calls whose sizes are one, odd, or smaller than any tile, compiled for a GPU that is not there.

``python -m tests.kernels.odd_shapes sm_90 [PART OF A NAME …]`` prints what does not compile. Sizes
of one and multiples of sixteen are what Triton compiles other kernels for.
"""

import sys
from itertools import product

import torch

HALF, FLOAT = torch.bfloat16, torch.float32
DTYPES = (HALF, FLOAT, torch.float16)
ROWS = [(2, 1, 1), (1, 1, 1), (2, 3, 1), (2, 1, 3), (1, 5, 1), (3, 17, 16), (2, 17, 2)]
#: Channels, outputs, size, kernel, padding, groups.
CONVOLUTIONS = [
    (1, 1, (1, 1), (1, 1), 0, 1), (1, 1, (1, 1), (3, 3), 1, 1), (1, 4, (28, 28), (3, 3), 1, 1),
    (4, 4, (5, 5), (3, 3), 1, 4), (1, 4, (5, 5), (3, 3), 1, 1), (2, 2, (1, 1), (1, 1), 0, 2),
    (32, 32, (1, 9), (1, 3), 0, 2), (512, 512, (2, 2), (3, 3), 1, 1),
    (512, 512, (1, 1), (3, 3), 1, 1), (512, 512, (1, 4), (3, 3), 1, 1),
    (64, 64, (5, 5, 5), (3, 3, 3), 1, 1), (4, 4, (9,), (3,), 1, 4), (64, 64, (9,), (3,), 1, 1),
    (64, 64, (9,), (1,), 0, 1), (4, 8, (5, 5), (1, 1), 0, 4), (64, 1, (7, 7), (1, 1), 0, 1),
]  # fmt: skip
LINEAR = [(65, 400, 400), (2, 400, 400), (2, 400, 8), (3, 1, 5), (3, 5, 1), (1, 1, 1)]
IMAGES = [(1, 1), (2, 1), (1, 1, 1, 1), (2, 3, 1, 1), (4, 1, 28, 28), (2, 5)]


def empty(*shape, dtype=FLOAT):
    return torch.empty(shape, dtype=dtype, device="meta")


def indices(*shape):
    return empty(*shape, dtype=torch.int64)


def norms(dtype):
    """Every operator of norms, by what it is called with."""

    def t(*shape):
        return empty(*shape, dtype=dtype)

    for shape in ROWS:
        n, tokens, width = shape
        both, channels_first = (t(*shape), t(*shape)), (t(n, width, tokens), t(n, width, tokens))
        per_channel = (empty(width), empty(width))
        for rms in (False, True):
            yield f"layer norm {shape} {rms}", "layer_norm_sqnorm", (*both, 1e-5, rms)
            arguments = (*both, t(width), 1e-5, rms)
            yield f"layer norm back {shape} {rms}", "layer_norm_backward_sqnorm", arguments
        for groups in {1, width}:
            arguments = (*channels_first, groups, 1e-5)
            yield f"group norm {shape} {groups}", "group_norm_sqnorm", arguments
        arguments = (*channels_first, *per_channel, 1e-5)
        yield f"batch norm {shape}", "batch_norm_sqnorm", arguments
        arguments = (*channels_first, *per_channel, empty(width), 1e-5)
        yield f"batch norm back {shape}", "batch_norm_backward_sqnorm", arguments
        yield f"bias {shape}", "bias_sqnorm", channels_first[:1]
        for padding in (-1, 1):
            arguments = (indices(n, tokens), both[0], padding)
            yield f"embedding {shape} {padding}", "embedding_sqnorm", arguments
    for tokens, inputs, outputs in LINEAR:
        arguments = (t(2, tokens, inputs), t(2, tokens, outputs), True)
        yield f"linear {tokens, inputs, outputs}", "linear_sqnorm", arguments
    for channels, outputs, size, kernel, padding, groups in CONVOLUTIONS:
        pads = [padding if k > 1 else 0 for k in kernel]
        out = [s + 2 * p - k + 1 for s, p, k in zip(size, pads, kernel, strict=True)]
        ones, x, d = (1,) * len(size), t(2, channels, *size), t(2, outputs, *out)
        name = f"convolution {channels, outputs, size, kernel, groups}"
        yield name, "conv_sqnorm", (x, d, kernel, ones, pads, ones, groups, True)


def others():
    """Noise and votes."""
    for shape, last, copies in product(IMAGES, (False, True), (1, 2, 7)):
        if last and len(shape) != 4:
            continue
        for channel in (None, empty(shape[1])):
            limits = (None, None) if channel is None else (0.0, 1.0)
            ids = [indices(copies) for _ in range(3)]
            arguments = (empty(*shape), *ids, indices(2), 1, *limits, channel, channel, HALF, last)
            yield f"noise {shape, last, copies, channel is None}", "noisy_batch", arguments
    for rows, classes in ((1, 1), (2, 1), (1, 2), (1, 1000)):
        arguments = (empty(rows, classes), indices(rows), "argmax", None, 1)
        yield f"argmax {rows, classes}", "vote_count", arguments
    for (rows, k), mode in product(((1, 1), (5, 1), (1, 70)), ("above", "histogram")):
        for dtype in (FLOAT, torch.float64):
            arguments = (empty(rows), indices(rows), mode, empty(k, dtype=dtype), 1)
            yield f"{mode} {rows, k, dtype}", "vote_count", arguments


def cases():
    """Every call by name."""
    found = {name: (operator, arguments) for name, operator, arguments in others()}
    for dtype in DTYPES:
        kind = str(dtype).removeprefix("torch.")
        found |= {f"{name} {kind}": (op, arguments) for name, op, arguments in norms(dtype)}
    return found


def main(target, *parts):
    """Compile and launch dry; say what fails, and how many there were."""
    from benchmarks.gpu.dry_driver import dry
    from gradood.ops import triton_backend

    chosen = {k: v for k, v in cases().items() if not parts or any(p in k for p in parts)}
    for name, (operator, arguments) in chosen.items():
        try:
            with dry(target):
                assert triton_backend.reject(operator, *arguments) is None
                getattr(triton_backend, operator)(*arguments)
        except Exception as error:  # a compiler's, of any kind
            print(f"{name}: {type(error).__name__}: {error.__cause__ or error}")
    print(len(chosen))


if __name__ == "__main__":
    main(*sys.argv[1:])
