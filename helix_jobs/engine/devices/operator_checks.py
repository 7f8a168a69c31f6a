"""Try each operator the engine uses on a device, against the CPU. No model is needed, and next to no memory.

Each check calls the operator the way the engine does; between them they touch every operator of a generation (a test
holds them to that).
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from helix_jobs.device_names import DIRECTML_DEVICE_TYPE
from helix_jobs.engine.devices.row_writer import row_writer

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_CPU: Final = torch.device("cpu")
# Differences that rounding explains, relative to the largest magnitude in the result.
_TOLERANCES: Final = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# torch-directml's warning, given once, when it has no kernel and copies the tensors to the CPU and back.
_FALLBACK_SIGN: Final = "fall back"
_MASKED: Final = -1e30


class OperatorStatus(StrEnum):
    """Outcome of a check."""

    OK = "ok"
    FALLS_BACK = "falls back"  # right, but computed on the CPU: two copies of the tensors each time
    DIFFERS = "differs"
    FAILS = "fails"


@dataclass(frozen=True, slots=True)
class OperatorVerdict:
    """The result of one check in one dtype.

    Attributes:
        operator: Its name in torch.
        purpose: The engine's use of it.
        dtype: Dtype of the floating-point inputs, such as ``float16``.
        status: Outcome of the check.
        detail: The size of the difference, or the error; empty when the result is right.
        is_vital: As in the check.
    """

    operator: str
    purpose: str
    dtype: str
    status: OperatorStatus
    detail: str
    is_vital: bool = True

    @property
    def makes_answers_wrong(self) -> bool:
        """Whether the device must not generate answers."""
        return self.is_vital and self.status in (OperatorStatus.DIFFERS, OperatorStatus.FAILS)


class _Inputs:
    """Makes the same inputs on any device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self._generator = torch.Generator().manual_seed(7)

    def floats(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype).to(self.device)

    def ids(self, *values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.device)


@dataclass(frozen=True, slots=True)
class OperatorCheck:
    """One operator: ``compute`` makes its inputs and returns its result, on the device that the inputs are made for.

    If ``is_vital`` is false, answers are right even if the device's result differs.
    """

    operator: str
    purpose: str
    compute: Callable[[_Inputs], torch.Tensor]
    is_vital: bool = True


def _write_rows(inputs: _Inputs) -> torch.Tensor:
    pool = torch.zeros((12, 8), dtype=inputs.dtype, device=inputs.device)
    new = inputs.floats(3, 8).narrow(1, 0, 4).contiguous()
    row_writer(inputs.device.type)(pool.view(-1, 4), inputs.ids(3, 0, 23), new)
    return pool


def _mask(inputs: _Inputs) -> torch.Tensor:
    visible = inputs.ids(4, 4, 4, 1, 5, 6, 9, 9, 9, 9, 9, 9).view(2, 1, 6, 1)
    keys = torch.arange(9, dtype=torch.int64, device=inputs.device)
    return (keys >= visible).float() * _MASKED


def _softmax(inputs: _Inputs) -> torch.Tensor:
    scores = inputs.floats(2, 6, 9).float().mul_(3.0)
    scores.view(2, 1, 6, 9).add_(_mask(inputs))
    return torch.softmax(scores, dim=-1).to(inputs.dtype)


def _parts(inputs: _Inputs) -> torch.Tensor:
    first, second, third = inputs.ids(5, 1, 3, 0, 4, 2, 8).split((2, 4, 1))
    return torch.cat((third, second.index_select(0, first.clamp(max=3)), second))


def _maximum_of_nan(inputs: _Inputs) -> torch.Tensor:
    logits = torch.zeros(3, 50)
    logits[1, 7] = float("nan")
    logits[2, 9] = float("inf")
    best = logits.to(inputs.dtype).to(inputs.device).max(dim=-1)
    return best.values


def _ties(inputs: _Inputs) -> torch.Tensor:
    """Both operators must pick the first of equal values: which operator runs depends on the rest of the batch."""
    logits = torch.zeros(3, 300)
    logits[0, [7, 8, 250]] = 2.0
    logits[1, [31, 32, 299]] = 1.0
    on_device = logits.to(inputs.dtype).to(inputs.device)
    return torch.stack((on_device.max(dim=-1).indices, on_device.argmax(dim=-1)))


def _maximum(inputs: _Inputs) -> torch.Tensor:
    best = inputs.floats(5, 300).narrow(1, 0, 290).max(dim=-1)
    return torch.stack((best.values.float(), best.indices.float()))


def _rms_norm(inputs: _Inputs) -> torch.Tensor:
    exact = inputs.floats(5, 3, 16).contiguous().float()
    return exact * torch.rsqrt((exact * exact).mean(dim=-1, keepdim=True) + 1e-6)


def _halves(inputs: _Inputs) -> torch.Tensor:
    gate, up = inputs.floats(5, 32).chunk(2, dim=-1)
    return gate * up


def _heads(inputs: _Inputs) -> torch.Tensor:
    queries, keys, values = inputs.floats(5, 7, 4).split((3, 2, 2), dim=1)
    return torch.cat((values, keys, queries), dim=1)


def _window(inputs: _Inputs) -> torch.Tensor:
    visible = inputs.ids(4, 1, 5, 9).view(2, 1, 2, 1)
    keys = torch.arange(9, dtype=torch.int64, device=inputs.device)
    return ((keys >= visible) | (keys < visible - 3)).float() * _MASKED


def _bounded(inputs: _Inputs) -> torch.Tensor:
    scores = inputs.floats(2, 6, 9).float()
    return torch.tanh(scores.div_(2.0).tanh_().mul_(2.0) / 3.0) * 3.0


def _exponential(inputs: _Inputs) -> torch.Tensor:
    hidden = inputs.floats(5, 16)
    return torch.where(hidden > 0, hidden * hidden, torch.exp(hidden.clamp(max=-1e-6)) - 1)


def _adapted(inputs: _Inputs) -> torch.Tensor:
    owners, columns = inputs.ids(1, 0, 2, 1).view(4, 1), inputs.ids(1, 1, 2)
    narrow = torch.where(owners == columns, inputs.floats(4, 3), inputs.floats(1))
    return inputs.floats(4, 8).addmm_(narrow, inputs.floats(3, 8))


_CHECKS: Final = (
    OperatorCheck("to", "moves weights, tokens and logits", lambda new: new.floats(4, 5).float().to(new.dtype)),
    OperatorCheck("embedding", "reads tokens", lambda new: functional.embedding(new.ids(3, 0, 3), new.floats(9, 16))),
    OperatorCheck(
        "linear", "projections", lambda new: functional.linear(new.floats(5, 32), new.floats(24, 32), new.floats(24))
    ),
    OperatorCheck(
        "linear, no bias", "projections", lambda new: functional.linear(new.floats(5, 32), new.floats(24, 32))
    ),
    OperatorCheck(
        "bmm", "attention", lambda new: torch.bmm(new.floats(4, 6, 8), new.floats(4, 9, 8).transpose(1, 2).contiguous())
    ),
    OperatorCheck("arange, ge", "the mask of attention", _mask),
    OperatorCheck("lt, bitwise_or, sub", "the mask of a window", _window),
    OperatorCheck("tanh, div", "bounded scores and logits", _bounded),
    OperatorCheck("softmax", "attention, masked", _softmax),
    OperatorCheck("split of ids", "takes apart what was brought in one copy", _parts),
    OperatorCheck(
        "index_select", "gathers the KV cache", lambda new: new.floats(12, 8).index_select(0, new.ids(7, 0, 7))
    ),
    OperatorCheck("rsqrt, mean", "RMS norm", _rms_norm),
    OperatorCheck(
        "layer_norm",
        "norm",
        lambda new: functional.layer_norm(new.floats(5, 16), (16,), new.floats(16), new.floats(16)),
    ),
    OperatorCheck("silu", "activation", lambda new: functional.silu(new.floats(5, 16))),
    OperatorCheck("gelu", "activation", lambda new: functional.gelu(new.floats(5, 16))),
    OperatorCheck("gelu, tanh", "activation", lambda new: functional.gelu(new.floats(5, 16), approximate="tanh")),
    OperatorCheck("relu", "activation", lambda new: functional.relu(new.floats(5, 16))),
    OperatorCheck("where, exp", "activation", _exponential),
    OperatorCheck(
        "mul, add", "residuals, rotation", lambda new: new.floats(5, 3, 8) * new.floats(5, 1, 8) + new.floats(8)
    ),
    OperatorCheck("chunk", "gated MLP", _halves),
    OperatorCheck("split, cat", "heads, rotation", _heads),
    OperatorCheck(
        "transpose, reshape",
        "attention",
        lambda new: new.floats(2, 5, 3, 4).transpose(1, 2).reshape(6, 20).contiguous(),
    ),
    OperatorCheck("clamp", "learned positions", lambda new: new.ids(0, 5, 90).clamp(max=31)),
    OperatorCheck("max", "greedy tokens", _maximum),
    OperatorCheck("max of NaN", "finds broken logits", _maximum_of_nan),
    OperatorCheck("max, argmax of equals", "the same answer in any batch", _ties, is_vital=False),
    OperatorCheck("eq, where, addmm", "adapters", _adapted),
    OperatorCheck("argmax", "draft tokens", lambda new: new.floats(5, 300).argmax(dim=-1)),
)
# The operator with which each kind of device writes the KV cache.
_WRITERS: Final = {DIRECTML_DEVICE_TYPE: "scatter", "mps": "index_put"}


def operator_checks(device_type: str) -> tuple[OperatorCheck, ...]:
    """Checks of the operators that the engine uses on such a device."""
    writer = OperatorCheck(_WRITERS.get(device_type, "index_copy"), "writes the KV cache", _write_rows)
    return (*_CHECKS, writer)


@torch.no_grad()
def run_check(check: OperatorCheck, device: torch.device, dtype: torch.dtype) -> OperatorVerdict:
    """Compute on the device and on the CPU, and compare. A check that fails raises nothing."""
    status, detail = _compare(check, device, dtype)
    name = str(dtype).removeprefix("torch.")
    return OperatorVerdict(check.operator, check.purpose, name, status, detail, check.is_vital)


def _compare(check: OperatorCheck, device: torch.device, dtype: torch.dtype) -> tuple[OperatorStatus, str]:
    expected = check.compute(_Inputs(_CPU, dtype))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = check.compute(_Inputs(device, dtype)).cpu()
    except Exception as error:  # a driver may raise anything, and the check is to find out
        logger.debug("%s in %s failed on %s", check.operator, dtype, device, exc_info=True)
        first_line = (str(error).strip().splitlines() or [""])[0]
        return OperatorStatus.FAILS, f"{type(error).__name__}: {first_line}"
    found = difference(got, expected)
    if found is not None:
        return OperatorStatus.DIFFERS, found
    if any(_FALLBACK_SIGN in str(warning.message) for warning in caught):
        return OperatorStatus.FALLS_BACK, "computed on the CPU"
    return OperatorStatus.OK, ""


def difference(got: torch.Tensor, expected: torch.Tensor) -> str | None:
    """How two results differ beyond rounding, or None."""
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"is {got.dtype} {list(got.shape)}, should be {expected.dtype} {list(expected.shape)}"
    if not expected.is_floating_point():
        wrong = int((got != expected).sum())
        return f"{wrong} of {expected.numel()} values are wrong" if wrong else None
    got, exact = got.double(), expected.double()
    special = ~torch.isfinite(exact)
    same_special = torch.equal(special, ~torch.isfinite(got)) and torch.equal(
        got[special].nan_to_num(nan=1.5), exact[special].nan_to_num(nan=1.5)
    )
    if not same_special:
        return "NaN or infinity where there is none, or none where there is"
    largest = float(exact[~special].abs().max()) if not bool(special.all()) else 0.0
    error = float((got - exact)[~special].abs().max()) if not bool(special.all()) else 0.0
    if error > _TOLERANCES[expected.dtype] * max(largest, 1e-3):
        return f"off by {error:.2g} where values reach {largest:.2g}"
    return None
