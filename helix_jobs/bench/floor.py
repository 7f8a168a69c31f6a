"""The matrix-product floor: the cost of a target step that consisted of its linear layers alone.

The layers are the decoder's own objects, so weights, number format and kernels are those of the step itself. They run
one after another, so weights stream from memory as in a step.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from helix_jobs.engine.model.decoder import Decoder

_WARM_UPS: Final = 2
_REPEATS: Final = 7


@torch.no_grad()
def matrix_product_floor(decoder: Decoder, num_tokens: int) -> float:
    """Seconds that the layers take for ``num_tokens`` rows: the median of a few passes after a warm-up."""
    linears = decoder.linears()
    # in_features -> [num_tokens, in_features]
    rows = {
        width: torch.randn(num_tokens, width, dtype=torch.float32).to(decoder.dtype).to(decoder.device)
        for width in {layer.in_features for layer in linears}
    }
    times = []
    for number in range(_WARM_UPS + _REPEATS):
        start = time.perf_counter()
        for layer in linears:
            product = layer(rows[layer.in_features])
        # On an asynchronous device a copy to the host waits for all earlier work.
        product.reshape(-1).narrow(0, 0, 1).cpu()
        if number >= _WARM_UPS:
            times.append(time.perf_counter() - start)
    return median(times)
