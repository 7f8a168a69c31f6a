"""Tiny models of each family in GGUF files, as llama.cpp's converter makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.unit.engine.gguf_dense_conversions import DENSE_CONVERSIONS
from tests.unit.engine.gguf_gpt_conversions import GPT_CONVERSIONS
from tests.unit.engine.gguf_mamba_conversions import MAMBA_CONVERSIONS
from tests.unit.engine.gguf_sparse_conversions import SPARSE_CONVERSIONS
from tests.unit.engine.model_files import write_gguf

if TYPE_CHECKING:
    from pathlib import Path

# Widths of which Q8_0 has whole blocks.
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_theta": 10000.0,
}

CONVERSIONS = {**DENSE_CONVERSIONS, **GPT_CONVERSIONS, **MAMBA_CONVERSIONS, **SPARSE_CONVERSIONS}


def write_converted(path: Path, architecture: str, **more: Any) -> Any:
    """A tiny model's file; returns the model.

    Args:
        path: Where to.
        architecture: A key of ``CONVERSIONS``.
        more: Further arguments of ``write_gguf``, whose settings and overrides count before the conversion's.
    """
    own = CONVERSIONS[architecture]
    settings = {**own.settings, **more.pop("settings", {})}
    leave_out = (*own.leave_out, *more.pop("leave_out", ()))
    return write_gguf(
        path,
        architecture.partition(":")[0],
        settings,
        model_type=own.model_type,
        convert=own.convert,
        leave_out=leave_out,
        more=more.pop("more", own.more),
        stated=more.pop("stated", own.stated),
        **{**_SIZES, **own.overrides, **more},
    )
