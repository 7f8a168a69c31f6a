"""Which products of weights in blocks are faster here, those of rounded activations or exact ones: a short trial.

Processors with matrix tiles (Intel AMX) multiply decoded blocks in bfloat16 as fast as bytes, and from a few rows on
faster (docs/performance.md, "Bytes or exact"): each group of weights has a scale of its own, so products of bytes would
leave the tiles group by group.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.devices.kept_file import KeptFile
from helix_jobs.engine.kernels.cpu.build import processor_features
from helix_jobs.engine.model.quantize import with_exact_blocks
from helix_jobs.engine.weights.block_layouts import BLOCK_LAYOUTS
from helix_jobs.engine.weights.block_matrix import BlockMatrix
from helix_jobs.engine.weights.int8_linear import Int8Linear
from helix_jobs.engine.weights.packed_int8_linear import PackedInt8Linear
from helix_jobs.engine.weights.packed_linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helix_jobs.engine.kernels.cpu.kernels import NativeKernels
    from helix_jobs.engine.loaded_models import LoadedModel

logger = logging.getLogger(__name__)

# A job as it is reckoned with: a prompt of so many tokens, which are multiplied together, and an answer of so many.
_PROMPT_ROWS: Final = 256
_ANSWER_STEPS: Final = 128
# The matrix of the trial. The verdict is one for all models, so that ``helix doctor`` and a worker find the same;
# ratios of the types of blocks differ by a tenth.
_OUTPUTS, _INPUTS, _KIND = 2048, 2048, "Q4_K"
_ROUNDS: Final = 7
_EXACT, _ROUNDED = "exact", "rounded"


def without_slow_bytes(
    model: LoadedModel,
    native: NativeKernels,
    max_batch_size: int,
    folder: Path,
    on_progress: Callable[[str], None] | None = None,
) -> LoadedModel:
    """Let an int8 model whose weights stay in blocks multiply activations as they are where that is faster.

    Who asks for int8 gives accuracy away for speed. Where there is none to be had, the model keeps its accuracy. A
    draft is such a model, too: each of its steps has a row of every sequence, as the target's steps have.

    Trade-off: a model computes every step in one way, so that an answer does not depend on how many others are
    computed beside it. With a batch of many a single request may then take longer than it could.

    Args:
        model: The model, not computed by compiled kernels yet.
        native: The kernels that will compute it.
        max_batch_size: Sequences that are computed at once.
        folder: Keeps the verdicts.
        on_progress: Receives one line if the model is changed.
    """
    has_blocks = any(isinstance(linear, PackedInt8Linear) for linear in model.decoder.linears())
    if not has_blocks or not is_exact_faster(native, max_batch_size, folder):
        return model
    exact = with_exact_blocks(model.decoder)
    is_int8 = any(isinstance(linear, Int8Linear) for linear in exact.linears())
    changed = replace(model, decoder=exact, is_int8=is_int8)
    (on_progress or logger.info)(
        f"activations of {model.name} are not rounded to bytes ({changed.dtype_name}): a trial found exact products of "
        f"blocks faster here for {max_batch_size} sequences at once"
    )
    return changed


def is_exact_faster(native: NativeKernels, max_batch_size: int, folder: Path) -> bool:
    """Whether exact products of blocks take less time here, in jobs of so many at once; from the file if tried before.

    Without matrix tiles they never do, and nothing is tried.
    """
    if not native.has_tiles:
        return False
    identity = {
        "processor": processor_features(),
        "threads": str(torch.get_num_threads()),
        "kernels": native.version,
        "batch": str(max_batch_size),
    }
    file = KeptFile(folder, "bytes", identity)
    kept = file.read()
    if isinstance(kept, dict) and kept.get("verdict") in (_EXACT, _ROUNDED):
        return bool(kept["verdict"] == _EXACT)
    seconds = {rows: _try(native, rows) for rows in (max_batch_size, _PROMPT_ROWS)}
    exact, rounded = (
        job_seconds(step, prompt, max_batch_size)
        for step, prompt in zip(seconds[max_batch_size], seconds[_PROMPT_ROWS], strict=True)
    )
    file.write({"verdict": _EXACT if exact <= rounded else _ROUNDED, "seconds": [*seconds.values()]})
    return exact <= rounded


def job_seconds(step: float, prompt: float, max_batch_size: int) -> float:
    """Seconds that one product takes in as many jobs as are computed at once.

    Args:
        step: Seconds of the product in a step with one row of each job.
        prompt: Seconds of the product for the rows of one prompt.
        max_batch_size: How many jobs there are.
    """
    return _ANSWER_STEPS * step + max_batch_size * prompt


@torch.inference_mode()
def _try(native: NativeKernels, rows: int) -> tuple[float, float]:
    """Seconds of the exact product of so many rows, and of that with rounded activations.

    The shortest of several in turns: other work on the machine only lengthens one.
    """
    layout = BLOCK_LAYOUTS[_KIND]
    # How long a product takes does not depend on the numbers; nought is the scale of all these blocks.
    blocks = torch.zeros((_OUTPUTS, _INPUTS // layout.weights * layout.nbytes), dtype=torch.uint8)
    weight = PackedLinear([BlockMatrix(layout, blocks)], None)
    hidden = torch.zeros((rows, _INPUTS), dtype=native.dtype)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for product, own in zip((native.packed_linear, native.packed_int8_linear), times, strict=True):
            started = time.perf_counter()
            product(hidden, weight, None)
            own.append(time.perf_counter() - started)
    return min(times[0]), min(times[1])
