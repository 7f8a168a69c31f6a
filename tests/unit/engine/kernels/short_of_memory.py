"""A program: calls kernels while its process has no memory left, and says which of them raised what they should.

Each kernel is made to ask for a few MB, and its result takes a few KB.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.kernels.cpu.expert_table import ExpertTable
from helix_jobs.engine.kernels.cpu.int8_decoder import _Layer, _Model, _Step
from helix_jobs.engine.kernels.cpu.int8_matrix import Int8Matrix
from helix_jobs.engine.kernels.cpu.kernels import NativeKernels, load_kernels
from helix_jobs.engine.kernels.cpu.plain_linear import CompiledPlainLinear
from helix_jobs.engine.weights.linear import DenseLinear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEAD_DIM, BLOCK_SIZE, NUM_HEADS, CONTEXT = 16, 16, 8, 1 << 16
_PIECE: Final = 1 << 16


def attention(native: NativeKernels) -> Callable[[], object]:
    """Many queries over a context whose blocks are all the same one."""
    return attending(native, torch.ones(BLOCK_SIZE, HEAD_DIM))


def attention_of_int8(native: NativeKernels) -> Callable[[], object]:
    """The same over keys and values of 8 bits."""
    return attending(native, torch.ones((BLOCK_SIZE, HEAD_DIM), dtype=torch.int8), torch.ones(BLOCK_SIZE))


def attending(native: NativeKernels, pool: torch.Tensor, scales: torch.Tensor | None = None) -> Callable[[], object]:
    queries = torch.ones(BLOCK_SIZE, NUM_HEADS * HEAD_DIM)
    pieces = torch.tensor([[0, BLOCK_SIZE, CONTEXT - BLOCK_SIZE, 0]])
    blocks = torch.zeros(CONTEXT // BLOCK_SIZE, dtype=torch.int32)
    output = torch.empty_like(queries)
    pools = [one.data_ptr() for one in (pool, pool, *([] if scales is None else [scales, scales]))]
    _, attend = native.paged(has_scales=scales is not None)
    kept = (pool, scales)

    def call() -> None:
        assert kept, "compiled code has pointers into both"
        attend(
            queries.data_ptr(), *pools, pieces.data_ptr(), blocks.data_ptr(), output.data_ptr(), 1, NUM_HEADS, 1,
            BLOCK_SIZE, 1.0, 0.0, 0, None,
        )  # fmt: skip

    return call


def experts(native: NativeKernels) -> Callable[[], object]:
    """Every token chooses every expert."""
    inner, outer = (CompiledPlainLinear(DenseLinear(torch.ones(64, size), None), native) for size in (64, 32))
    table = ExpertTable.of([inner] * 32, [outer] * 32, "silu")
    hidden, choice, weights = torch.ones(200, 64), torch.arange(32).expand(200, 32).contiguous(), torch.ones(200, 32)
    return lambda: native.experts(hidden, choice, weights, table)


def int8_linear(native: NativeKernels) -> Callable[[], object]:
    """Rows that are long."""
    weight = matrix(2, 1 << 17)
    hidden = torch.ones(16, 1 << 17)
    return lambda: native.int8_linear(hidden, weight, None)


def int8_layers(native: NativeKernels) -> Callable[[], object]:
    """No layer at all: the call asks for the memory of the widest product before the first one."""
    return layers(native, num_layers=0, tokens=6, intermediate_size=1 << 17)


def int8_attention(native: NativeKernels) -> Callable[[], object]:
    """One narrow layer over a long context."""
    return layers(native, num_layers=1, tokens=1, intermediate_size=HEAD_DIM)


def tiled_linear(_: NativeKernels) -> Callable[[], object]:
    """Sums that are kept between two halves of the inputs."""
    native = load_kernels(Path(sys.argv[1]), torch.bfloat16, torch.device("cpu"), HEAD_DIM)
    hidden, weight = (torch.ones(rows, 3072, dtype=torch.bfloat16) for rows in (192, 4096))
    packed, output = native.pack_tiles(weight), torch.empty(192, 4096, dtype=torch.bfloat16)
    return lambda: native._tiled_linear(
        hidden.data_ptr(), packed.data_ptr(), None, None, output.data_ptr(), 192, 3072, 4096
    )


def packed_linear(_: NativeKernels) -> Callable[[], object]:
    """Activations that are widened, or laid out for matrix tiles, once for all rows."""
    native = load_kernels(Path(sys.argv[1]), torch.bfloat16, torch.device("cpu"), HEAD_DIM)
    hidden, weight = (torch.ones(rows, 1 << 12, dtype=torch.bfloat16) for rows in (256, 8))
    return lambda: native.plain_linear(hidden, weight, None, None)


def matrix(rows: int, columns: int) -> Int8Matrix:
    return Int8Matrix.of(torch.ones((rows, columns), dtype=torch.int8), torch.full((rows,), 1 / columns), None)


def layers(native: NativeKernels, *, num_layers: int, tokens: int, intermediate_size: int) -> Callable[[], object]:
    """An int8 decoder whose tokens stand at the end of a context whose blocks are all the same one."""
    width = NUM_HEADS * HEAD_DIM
    shapes = ((width + 2 * HEAD_DIM, HEAD_DIM), (HEAD_DIM, width), (2 * HEAD_DIM, HEAD_DIM), (HEAD_DIM, HEAD_DIM))
    products = [matrix(*shape) for shape in shapes]
    norm, pool, hidden = torch.ones(HEAD_DIM), torch.ones(BLOCK_SIZE, HEAD_DIM), torch.ones(tokens, HEAD_DIM)
    layer = _Layer(
        norm.data_ptr(), None, None, norm.data_ptr(), *(one.struct for one in products), pool.data_ptr(),
        pool.data_ptr(), None, None, 1.0, 0.0, 0,
    )  # fmt: skip
    model = _Model(
        ctypes.pointer(layer), num_layers, HEAD_DIM, NUM_HEADS, 1, HEAD_DIM, BLOCK_SIZE, intermediate_size, 1e-6
    )
    row, table = torch.zeros(1, dtype=torch.int64), torch.ones(1, HEAD_DIM)
    pieces, blocks = torch.tensor([[0, 1, CONTEXT - 1, 0]]), torch.zeros(CONTEXT // BLOCK_SIZE, dtype=torch.int32)
    numbers = [one.data_ptr() for one in (row, row, pieces, blocks, table, table)]
    step = _Step(tokens, num_layers, *numbers, ctypes.pointer(ctypes.c_double(0.0)))
    kept = (products, norm, pool, row, table, pieces, blocks)

    def call() -> object:
        assert kept, "compiled code has pointers into all of them"
        return native.int8_layers(ctypes.byref(model), ctypes.byref(step), hidden.data_ptr())

    return call


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Take the process all memory but small pieces."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    spare, taken = bytearray(_PIECE), []
    resource.setrlimit(resource.RLIMIT_AS, (0, most))
    try:
        with contextlib.suppress(MemoryError):
            while True:
                taken.append(bytearray(_PIECE))
        del spare
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def raises(call: Callable[[], object]) -> bool:
    """Whether the kernel itself says that there is no memory, and computes before and afterwards."""
    call()
    found = None
    with without_memory():
        try:
            call()
        except Exception as error:  # noqa: BLE001  (another one is found, too)
            found = error
    call()
    return isinstance(found, MemoryError) and "compiled kernels" in str(found)


def main() -> None:
    native = load_kernels(Path(sys.argv[1]), torch.float32, torch.device("cpu"), HEAD_DIM)
    torch.set_num_threads(2)
    for name in sys.argv[2:]:
        print(f"{name}: {raises(globals()[name](native))}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
