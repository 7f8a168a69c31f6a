"""What Helix does on a device, in six minutes and without a download: right or wrong, how fast, how far from the best.

    python tests/device/device_check.py --out DIR

Models are made on the spot, with random weights in well-known shapes. Each section prints one line and appends its
figures to DIR/gpu.jsonl; one that fails is shown and passed over. Nothing but torch, transformers and psutil is needed.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path

# Users have the allocator's default, and only so its holes show.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import answers
import speed
import torch
from section import Check

from helix_jobs.engine.devices import prepare_device
from helix_jobs.engine.model_loader import get_device

# What it is called, seconds it may take, what it does.
SECTIONS = (
    ("env", 15, speed.environment),
    ("operators", 20, answers.operators),
    ("memory", 45, speed.memory),
    ("exact fp32", 75, answers.exact_float32),
    ("exact half", 60, answers.exact_half),
    ("sampled", 30, answers.sampled),
    ("shortage", 40, answers.shortage),
    ("decode", 110, speed.decode),
    ("counts", 30, speed.counts),
    ("prefill", 30, speed.prefill),
    ("draft", 40, speed.draft),
)


def main() -> int:
    """Run the sections; the exit code is 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=330, help="seconds for all sections together")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonl")
    parser.add_argument("--device", help="cuda, xpu, mps, directml or cpu; the best one without")
    parser.add_argument("--tiny", action="store_true", help="very small models: tries the check itself")
    parser.add_argument("--only", help="names of sections, separated by commas")
    options = parser.parse_args()
    # Failures that the sections provoke are logged with their tracebacks.
    logging.getLogger("helix_jobs").setLevel(logging.CRITICAL)
    options.out.mkdir(parents=True, exist_ok=True)
    device = get_device(options.device)
    prepare_device(device)
    check = Check(device, options.tiny, options.out / "gpu.jsonl", time.monotonic() + options.budget)
    wanted = options.only.split(",") if options.only else [name for name, _, _ in SECTIONS]
    if options.tiny:
        torch.set_num_threads(1)
    for name, seconds, section in SECTIONS:
        if name in wanted:
            # Very small models are for trying the check, on a machine however busy.
            check.run(name, options.budget if options.tiny else seconds, section)
    print("\nwhat | eager ms | floor ms | share")
    for what, milliseconds, floor in check.rows:
        print(f"{what} | {milliseconds:.2f} | {floor:.2f} | {floor / milliseconds:.0%}")
    for failure in check.failures[:20]:
        print(f"! {failure[:200]}")
    print(f"FAILED: {len(check.failures)}")
    return int(bool(check.failures))


if __name__ == "__main__":
    sys.exit(main())
