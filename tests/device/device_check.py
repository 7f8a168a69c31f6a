"""What Helix does on a device, in six minutes and without a download: right or wrong, how fast, how far from the best.

    python -m tests.device.device_check --out DIR

Models are made on the spot, with random weights in well-known shapes. Each section prints one line and appends its
figures to DIR/gpu.jsonl; one that fails is shown and passed over, and what cannot be done says why. Nothing but torch,
transformers and psutil is needed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import time
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

# Users have the allocator's default, and only so its holes show.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")

import torch

from helix_jobs.engine.devices.devices import prepare_device
from helix_jobs.engine.loading.model_loader import get_device
from tests.device import answers, shortage, speed
from tests.device.section import Check

if TYPE_CHECKING:
    from collections.abc import Sequence

BUDGET = 330.0
# What it is called, its share of the budget in seconds, what it does.
SECTIONS = (
    ("env", 9, speed.environment),
    ("operators", 10, answers.operators),
    ("memory", 25, speed.memory),
    ("exact fp32", 45, answers.exact_float32),
    ("exact half", 30, answers.exact_half),
    ("sampled", 15, answers.sampled),
    ("shortage", 25, shortage.shortage),
    ("decode", 109, speed.decode),
    ("counts", 15, speed.counts),
    ("prefill", 20, speed.prefill),
    ("draft", 25, speed.draft),
    ("kernels", 1, speed.kernels),
    ("graphs", 1, speed.graphs),
)


def deadlines(shares: Sequence[float], budget: float) -> list[float]:
    """Seconds from the start by which each section has to be done.

    They add up to the budget. What one section leaves over, those after it have, so a quick device cuts none short.
    """
    return [budget * until / sum(shares) for until in accumulate(shares)]


def main() -> int:
    """Run the sections; the exit code is 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for all sections together")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonl")
    parser.add_argument("--device", help="cuda, xpu, mps, directml or cpu; the best one without")
    parser.add_argument("--tiny", action="store_true", help="very small models: tries the check itself")
    parser.add_argument("--only", help="names of sections, separated by commas")
    options = parser.parse_args()
    names = [name for name, _, _ in SECTIONS]
    wanted = options.only.split(",") if options.only else names
    if not set(wanted) <= set(names):
        parser.error(f"--only takes these: {', '.join(names)}")
    # Failures that the sections provoke are logged with their tracebacks.
    logging.getLogger("helix_jobs").setLevel(logging.CRITICAL)
    options.out.mkdir(parents=True, exist_ok=True)
    # What was imported stays; whoever frees memory between two sections need not look through it.
    gc.freeze()
    device = get_device(options.device)
    prepare_device(device)
    check = Check(device, options.tiny, options.out / "gpu.jsonl")
    if options.tiny:
        torch.set_num_threads(1)
    chosen = [one for one in SECTIONS if one[0] in wanted]
    started = time.monotonic()
    ends = deadlines([share for _, share, _ in chosen], options.budget)
    for (name, _, section), end in zip(chosen, ends, strict=True):
        check.run(name, started + end, section)
    print("\nwhat | eager ms | floor ms | share")
    for what, milliseconds, floor in check.rows:
        print(f"{what} | {milliseconds:.2f} | {floor:.2f} | {floor / milliseconds:.0%}")
    print(f"FAILED: {len(check.failures)}")
    return int(bool(check.failures))


if __name__ == "__main__":
    sys.exit(main())
