"""Whether a GGUF file is read as the transformers model it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.unit.engine.model_files import load
from tests.unit.engine.tiny_models import decoder_logits, reference_logits

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = range(3, 60)


def check_equal(path: Path, model: Any, dtype: str = "float32") -> None:
    """The same logits as transformers', and the same choice at each token."""
    got = decoder_logits(load(path, dtype=dtype).target.decoder, TOKENS)
    expected = reference_logits(model, TOKENS)
    assert torch.equal(got.argmax(1), expected.argmax(1))
    assert len(expected.argmax(1).unique()) > 2
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
