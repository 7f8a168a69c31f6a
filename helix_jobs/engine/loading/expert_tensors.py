"""Experts in checkpoints: the matrices of each one are stored by themselves, and transformers 5 stacks them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from helix_jobs.engine.loading.stored_tensor import StoredTensor
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Mixtral's names, and everybody else's.
_EXPERT: Final = re.compile(
    r"(?P<block>.*\.experts)\.(?P<index>\d{1,9})\.(?P<part>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight"
)
_STACKS: Final = {
    **dict.fromkeys(("gate_proj", "up_proj", "w1", "w3"), "gate_up_proj"),
    **dict.fromkeys(("down_proj", "w2"), "down_proj"),
}
_STACK: Final = re.compile(r".*\.experts\.(?P<part>gate_up_proj|down_proj)")
# GPT-OSS' experts in blocks of 32 four-bit numbers, two a byte, each block with its exponent, see ``mxfp4_weights``.
_MXFP4: Final = re.compile(r"(?P<stack>.*\.experts\.(?:gate_up|down)_proj)_(?P<part>blocks|scales)")
_MXFP4_BLOCK: Final = 32
_MXFP4_BYTES: Final = 16
# Up projections stand behind gates.
_PLACES: Final = {"up_proj": 1, "w3": 1}
# Parts of a stack, by its name.
_PARTS: Final = {"gate_up_proj": 2, "up_proj": 1, "down_proj": 1}


class _Expert(NamedTuple):
    """One matrix of one expert."""

    number: int
    part: str
    tensor: str
    stored: StoredTensor


def with_stacked_experts(
    name: str, tensors: Mapping[str, StoredTensor], renames: tuple[tuple[str, str], ...] = ()
) -> dict[str, StoredTensor]:
    """The tensors as transformers 5's modules have them.

    Args:
        name: The model's name as the user gave it.
        tensors: A checkpoint's tensors.
        renames: Of the checkpoint's family, see ``Family``.

    Raises:
        ModelError: Experts are missing, or not all of one shape.
        UnsupportedArchitectureError: Experts of one layer are quantised in several ways.
    """
    found: dict[str, StoredTensor] = {}
    stacks: dict[str, list[_Expert]] = {}
    for tensor, stored in tensors.items():
        renamed = _renamed(tensor, renames)
        match = _EXPERT.fullmatch(renamed)
        if match is None:
            found[renamed] = stored
        else:
            stack = f"{match['block']}.{_STACKS[match['part']]}"
            stacks.setdefault(stack, []).append(_Expert(int(match["index"]), match["part"], tensor, stored))
    for stack, experts in stacks.items():
        # Experts without gates have up projections alone (Nemotron-H).
        is_ungated = {expert.part for expert in experts} == {"up_proj"}
        own = stack.replace("gate_up_proj", "up_proj") if is_ungated else stack
        found[own] = _stacked(name, own, experts)
    return found


def with_upright_experts(tensors: Mapping[str, StoredTensor], hidden_size: object) -> dict[str, StoredTensor]:
    """The tensors, with stacks of experts whose rows and columns are exchanged as transformers' modules have them.

    Args:
        tensors: A checkpoint's tensors, experts stacked.
        hidden_size: The width that gates read and that experts yield.
    """
    return {
        tensor: replace(stored, shape=(stored.shape[0], stored.shape[2], stored.shape[1]), is_flipped=True)
        if _is_flipped(tensor, stored.shape, hidden_size)
        else stored
        for tensor, stored in tensors.items()
    }


class Mxfp4Parts(NamedTuple):
    """The names of the tensors that make up a stack of experts in blocks."""

    stack: str
    blocks: str
    scales: str


def mxfp4_parts(tensor: str) -> Mxfp4Parts | None:
    """The stack of experts in blocks to which a tensor belongs, or None."""
    match = _MXFP4.fullmatch(tensor)
    return None if match is None else Mxfp4Parts(match["stack"], f"{match['stack']}_blocks", f"{match['stack']}_scales")


def is_mxfp4(tensor: str) -> bool:
    """Whether the tensor holds experts in blocks, or the blocks' exponents."""
    return mxfp4_parts(tensor) is not None


def with_plain_experts(name: str, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors, with experts in MXFP4 blocks as the parameters of transformers' modules.

    Raises:
        ModelError: Blocks and exponents do not belong together.
    """
    found: dict[str, StoredTensor] = {}
    stacks: dict[str, dict[str, StoredTensor]] = {}
    for tensor, stored in tensors.items():
        match = _MXFP4.fullmatch(tensor)
        if match is None:
            found[tensor] = stored
        else:
            stacks.setdefault(match["stack"], {})[match["part"]] = stored
    for stack, parts in stacks.items():
        blocks, scales = (parts[part].shape if part in parts else () for part in ("blocks", "scales"))
        if not scales or blocks != (*scales, _MXFP4_BYTES) or len(scales) != 3:  # noqa: PLR2004  (expert, row, block)
            raise ModelError(
                f"model {name}: the blocks {list(blocks)} and exponents {list(scales)} of {stack:.200} do not belong "
                "together; fetch the model again"
            )
        count, rows, row_blocks = scales
        found[stack] = StoredTensor("MXFP4", (count, row_blocks * _MXFP4_BLOCK, rows))
    return found


def _is_flipped(tensor: str, shape: Sequence[int], hidden_size: object) -> bool:
    """Whether a tensor is a stack of experts whose rows and columns are exchanged."""
    found = _STACK.fullmatch(tensor)
    if found is None or len(shape) != 3:  # noqa: PLR2004  (expert, row, column)
        return False
    return shape[2 if found["part"] == "gate_up_proj" else 1] != hidden_size


def _renamed(tensor: str, renames: tuple[tuple[str, str], ...]) -> str:
    for old, new in renames:
        tensor = tensor.replace(old, new)
    return tensor


def _stacked(name: str, stack: str, experts: list[_Expert]) -> StoredTensor:
    """The one tensor that transformers makes of a stack's matrices."""
    count = 1 + max(expert.number for expert in experts)
    parts = _PARTS[stack.rpartition(".")[2]]
    if len(experts) != count * parts or len({(expert.number, expert.part) for expert in experts}) != len(experts):
        raise ModelError(
            f"model {name} lacks some of the experts' weights that belong together (of {count} experts at "
            f"{stack:.200} there are {len(experts)} matrices); fetch the model again"
        )
    first = experts[0].stored
    order = sorted(experts, key=lambda expert: (expert.number, _PLACES.get(expert.part, 0)))
    for expert in order:
        if expert.stored.shape != first.shape or len(first.shape) != 2:  # noqa: PLR2004  (a matrix)
            raise ModelError(
                f"model {name}: the weight {expert.tensor:.200} has the shape {list(expert.stored.shape)} and that of "
                f"another expert {list(first.shape)}; fetch the model again"
            )
    if len({expert.stored.kind for expert in experts}) > 1 and any(expert.stored.matrix for expert in experts):
        raise UnsupportedArchitectureError(
            f"model {name}: the experts at {stack:.200} are quantised in several ways; use the original weights or a "
            ".gguf file"
        )
    rows, columns = first.shape
    return StoredTensor(
        first.kind, (count, parts * rows, columns), is_merged=True, parts=tuple(expert.stored for expert in order)
    )
