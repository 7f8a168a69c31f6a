"""GgufFile: what the header of a .gguf file says, where transformers' reader does not tell or loses it.

The reader takes names and shapes from a fixed list. What is not on it falls under the table without a word: rotary
scaling, sliding windows, biases. Such a model would write fluent text, only not its own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch

from helix_jobs.engine.architecture import GGUF_ARCHITECTURES
from helix_jobs.errors import ModelError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from pathlib import Path

    from gguf import GGUFReader

_DTYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ROTARY_FACTORS: Final = "rope_freqs.weight"
_LONG_ROTARY_FACTORS: Final = ("rope_factors_long.weight", "rope_factors_short.weight")
# In these every projection is without bias, as far as the reader knows.
_WITHOUT_BIAS: Final = frozenset({"llama", "qwen3", "phi3"})


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file that can be served.

    Attributes:
        parameters: Number of weights stored.
        dtype: What most of them are stored in; None when quantised.
        rotary_factors: ``[rotary_dim / 2]`` float32 divisors of the inverse frequencies (Llama 3.1), or None.
        sliding_window: The attention window, or None.
        head_dim: Width of a head where the file tells, or None.
    """

    parameters: int
    dtype: torch.dtype | None
    rotary_factors: torch.Tensor | None = None
    sliding_window: int | None = None
    head_dim: int | None = None


def read_gguf(name: str, path: Path) -> GgufFile:
    """Read the header.

    Args:
        name: What the person called the model.
        path: An existing file.

    Raises:
        ModelError: It is damaged or not GGUF.
        UnsupportedArchitectureError: Its weights or settings would not be read in full.
    """
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError(f"model {name}: not a GGUF file; fetch it again")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        sizes: Counter[str] = Counter()
        for tensor in reader.tensors:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
        architecture = _value(reader, "general.architecture")
        settings = {
            key: _value(reader, f"{architecture}.{key}")
            for key in (
                "rope.scaling.type",
                "rope.dimension_count",
                "attention.sliding_window",
                "attention.key_length",
                "attention.head_count",
                "embedding_length",
            )
        }
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"model {name}: the GGUF file is damaged; fetch it again") from error
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _check(name, architecture, settings, set(tensors))
    factors = tensors.get(_ROTARY_FACTORS)
    kind = max(sizes, key=lambda key: sizes[key]) if sizes else ""
    return GgufFile(
        parameters=sum(sizes.values()),
        dtype=_DTYPES.get(kind),
        rotary_factors=None if factors is None else torch.from_numpy(factors.data.copy()).float(),
        sliding_window=_integer(settings["attention.sliding_window"]),
        head_dim=_integer(settings["attention.key_length"]),
    )


def _check(name: str, architecture: object, settings: dict[str, Any], tensors: set[str]) -> None:
    def refuse(what: str) -> UnsupportedArchitectureError:
        return UnsupportedArchitectureError(f"model {name}: {what}; use the model's safetensors")

    if architecture not in GGUF_ARCHITECTURES:
        raise refuse(
            f"a GGUF file of the architecture {architecture!r} cannot be read in full (of GGUF, supported are "
            f"{', '.join(GGUF_ARCHITECTURES)})"
        )
    scaling = settings["rope.scaling.type"]
    if scaling not in (None, "none") or tensors.intersection(_LONG_ROTARY_FACTORS):
        raise refuse(f"the scaling of positions ({scaling or 'longrope'}) cannot be read from a GGUF file")
    if architecture == "phi3" and None not in (settings["embedding_length"], settings["attention.head_count"]):
        head_dim = settings["embedding_length"] // settings["attention.head_count"]
        if settings["rope.dimension_count"] not in (None, head_dim):
            raise refuse("that heads are rotated in part cannot be read from a GGUF file")
    biased = sorted(tensor for tensor in tensors if tensor.endswith(".bias"))
    if architecture in _WITHOUT_BIAS and biased:
        raise refuse(f"biases ({biased[0]}) cannot be read from a GGUF file of the architecture {architecture!r}")


def _value(reader: GGUFReader, key: str) -> Any:  # noqa: ANN401  (GGUF metadata is what the file says)
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _integer(value: object) -> int | None:
    """Only one number for all layers; a window of 0 is none."""
    return value if isinstance(value, int) and value > 0 else None
