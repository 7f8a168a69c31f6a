"""What engine code may ask of a DirectML device: operators, dtypes, sizes, ranks, writes.

The DirectML backend of torch lacks many kernels. Some calls it refuses, others it silently carries out on the CPU, a
download and an upload each time, and a few it computes wrong. So the engine keeps to what is known to work. The names
are those of ATen, in-place forms without their underscore; what a Python call is made of stands beside it where the two
differ. Tests run whole generations under these rules on the CPU; ``helix doctor`` runs the operators on the device.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DTYPES: Final = frozenset((torch.float16, torch.float32, torch.int32, torch.int64, torch.bool))
MAX_RANK: Final = 4

ALLOWED_OPERATORS: Final = frozenset(
    (
        *("empty", "full", "zeros", "ones_like", "arange", "fill", "copy", "clone"),
        *("_to_copy",),  # to
        *("view", "_unsafe_view", "_reshape_alias"),  # view, reshape, contiguous (with clone)
        *("alias", "detach", "transpose", "permute", "unsqueeze", "squeeze", "expand"),
        *("slice",),  # narrow
        *("cat", "stack", "split", "split_with_sizes"),  # split, chunk
        *("index_select", "gather", "embedding", "where"),
        *("t", "mm", "bmm", "addmm", "baddbmm"),  # linear, matmul and these themselves
        *("add", "sub", "mul", "div", "neg", "abs", "pow", "sqrt", "rsqrt", "reciprocal", "exp", "log", "sin", "cos"),
        *("tanh", "sigmoid", "silu", "gelu", "relu", "erf", "clamp", "maximum", "minimum", "round", "floor", "ceil"),
        *("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not", "logical_xor"),
        *("bitwise_and", "bitwise_or", "bitwise_not", "sum", "mean", "max", "argmax", "amax"),
        *("_softmax", "_log_softmax", "native_layer_norm"),  # softmax, log_softmax, layer_norm
        *("cumsum", "topk", "sort"),
    )
)
# They have a kernel, but not on every driver a right one: each is for ``helix doctor`` to try first.
DOUBTFUL_OPERATORS: Final = frozenset(
    ("scatter", "repeat", "masked_fill", "nonzero", "masked_select", "any", "all"),
)

_KNOWN: Final = ALLOWED_OPERATORS | DOUBTFUL_OPERATORS
_TWO_OPERANDS: Final = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}
_NORMALISING: Final = frozenset(("native_layer_norm", "mean"))


@cache
def operator_name(func: Any) -> str:
    """``aten.add_.Tensor`` -> ``aten::add_``: the name that all overloads of an operator of torch's share."""
    name: str = func.name()
    return name.partition(".")[0]


@cache
def base_name(operator: str) -> str:
    """``aten::add_`` -> ``add``."""
    name = operator.rpartition("::")[2]
    return name.removesuffix("_")


def breaches(
    operator: str,
    inputs: Sequence[torch.Tensor],
    written: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
) -> list[str]:
    """Say which rules a call breaks.

    Args:
        operator: Its name in ATen, such as ``aten::add_``.
        inputs: The call's tensor arguments in order, all on the device.
        written: Those of them that it changes.
        outputs: Its tensor results.
    """
    name = base_name(operator)
    found = []
    if name not in _KNOWN:
        found.append(f"{name} has no kernel")
    for tensor in (*inputs, *outputs):
        if tensor.dtype not in DTYPES or 0 in tensor.shape or tensor.dim() > MAX_RANK:
            found += _tensor_breaches(name, tensor)
    for tensor in written:
        if tensor.storage_offset() != 0:
            found.append(f"{name} writes into a view with an offset")
        if tensor.dtype is torch.bool:
            found.append(f"{name} changes booleans in place")
    if name in _NORMALISING and not inputs[0].is_contiguous():
        found.append(f"{name} of a tensor that is not contiguous")
    if name in _TWO_OPERANDS and not all(_is_laid_out(inputs[place]) for place in _TWO_OPERANDS[name]):
        found.append(f"{name} of a tensor that is not contiguous")
    if name == "scatter":
        found += _scatter_breaches(inputs)
    return found


def _tensor_breaches(name: str, tensor: torch.Tensor) -> Iterator[str]:
    if tensor.dtype not in DTYPES:
        yield f"{name} of {tensor.dtype}"
    if tensor.numel() == 0:
        yield f"{name} of a tensor without elements"
    if tensor.dim() > MAX_RANK:
        yield f"{name} of more than {MAX_RANK} dimensions"


def _is_laid_out(operand: torch.Tensor) -> bool:
    """Contiguous; or a contiguous weight seen transposed, as every linear layer hands it over."""
    return operand.is_contiguous() or (operand.dim() == 2 and operand.t().is_contiguous())


def _scatter_breaches(inputs: Sequence[torch.Tensor]) -> list[str]:
    target, index, *source = inputs
    shapes = [target.shape, index.shape, *(one.shape for one in source)]
    differing = sum(len(set(sizes)) > 1 for sizes in zip(*shapes, strict=True))
    return ["scatter of shapes that differ in more than one dimension"] if differing > 1 else []
