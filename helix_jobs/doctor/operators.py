"""Check that the device computes each operator of the engine as the CPU does."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from helix_jobs.doctor.verdict import Level, Verdict
from helix_jobs.engine.devices.devices import resolve_dtype
from helix_jobs.engine.devices.operator_checks import OperatorStatus, OperatorVerdict, operator_checks, run_check
from helix_jobs.engine.loading.model_loader import get_device
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from helix_jobs.settings import Settings


def try_operators(settings: Settings) -> tuple[OperatorVerdict, ...]:
    """Run every check in float32 and in the device's dtype for bfloat16 checkpoints; none without a device."""
    try:
        device = get_device(settings.device)
    except ConfigurationError:  # check_devices has said so
        return ()
    checks = operator_checks(device.type)
    dtypes = dict.fromkeys((torch.float32, resolve_dtype("auto", device, torch.bfloat16)))
    return tuple(run_check(check, device, dtype) for check in checks for dtype in dtypes)


def judge_operators(tried: tuple[OperatorVerdict, ...]) -> list[Verdict]:
    """One verdict over all operators."""
    if not tried:
        return []
    counts = Counter(verdict.status for verdict in tried)
    finding = ", ".join(f"{counts[status]} {status}" for status in OperatorStatus if counts[status])
    if any(verdict.makes_answers_wrong for verdict in tried):
        remedy = "update the graphics driver, or run with --device cpu; answers from this device are not to be trusted"
        return [Verdict("operators", Level.FAILED, finding, remedy)]
    if counts[OperatorStatus.FALLS_BACK]:
        remedy = "right but slow: update the graphics driver and torch-directml"
        return [Verdict("operators", Level.WARNING, finding, remedy)]
    if counts[OperatorStatus.OK] < len(tried):
        remedy = "update the graphics driver; of equally likely tokens, a batch may choose another one than a job alone"
        return [Verdict("operators", Level.WARNING, finding, remedy)]
    return [Verdict("operators", Level.OK, finding)]
