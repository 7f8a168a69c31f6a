"""Each block layout gives the gguf package's numbers, bit for bit, whatever bytes its blocks hold."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from tests.unit.engine.block_files import random_blocks


@pytest.mark.parametrize("kind", BLOCK_LAYOUTS)
def test_a_layout_has_the_sizes_of_the_format(kind: str) -> None:
    layout = BLOCK_LAYOUTS[kind]
    assert (layout.weights, layout.nbytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


@pytest.mark.parametrize("kind", BLOCK_LAYOUTS)
def test_weights_equal_those_of_the_gguf_package_bit_for_bit(kind: str) -> None:
    blocks = random_blocks(kind, rows=7, columns=768)
    expected = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind])
    got = BLOCK_LAYOUTS[kind].decode(blocks)
    assert got.dtype is torch.float32
    assert got.shape == (7, 768)
    assert np.isfinite(expected).all()
    assert len(np.unique(expected)) > 40  # another byte somewhere gives another number
    assert got.numpy().view(np.uint32).tolist() == expected.view(np.uint32).tolist()
