"""Whether a device computes the engine's operators right: one trial for each device and driver, its verdict kept."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import torch

from helix_jobs.engine.devices.devices import describe_device, driver_version
from helix_jobs.engine.devices.kept_file import KeptFile
from helix_jobs.engine.devices.operator_checks import OperatorStatus, operator_checks, run_check
from helix_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helix_jobs.engine.devices.operator_checks import OperatorVerdict

logger = logging.getLogger(__name__)

_SOUND: Final = "sound"


def check_device(
    device: torch.device, dtype: torch.dtype, folder: Path, on_progress: Callable[[str], None] | None = None
) -> None:
    """Try every operator in float32, in float16 and in ``dtype``, unless this device and driver have passed before.

    Other devices are compared with the CPU, so nothing is tried on the CPU.

    Args:
        device: The device.
        dtype: The dtype of the models.
        folder: Keeps the verdict.
        on_progress: Receives one line when the check begins.

    Raises:
        ConfigurationError: The device's results differ from the CPU's.
    """
    if device.type == "cpu":
        return
    dtypes = tuple(dict.fromkeys((torch.float32, torch.float16, dtype)))
    checks = operator_checks(device.type)
    name = describe_device(device)
    identity = {
        "device": name,
        "driver": driver_version(device),
        "torch": torch.__version__,
        "dtypes": ", ".join(map(str, dtypes)),
        "operators": ", ".join(check.operator for check in checks),
    }
    file = KeptFile(folder, "operators", identity)
    kept = file.read()
    if isinstance(kept, dict) and kept.get("identity") == identity and kept.get("verdict") == _SOUND:
        return
    (on_progress or logger.info)(f"trying what {name} computes, once for this driver")
    verdicts = [run_check(check, device, one) for check in checks for one in dtypes]
    wrong = [verdict for verdict in verdicts if verdict.makes_answers_wrong]
    noted = [_sentence(verdict) for verdict in verdicts if verdict.status is not OperatorStatus.OK]
    file.write({"identity": identity, "verdict": "wrong" if wrong else _SOUND, "noted": noted})
    if wrong:
        raise ConfigurationError(
            f"{name} computes {len(wrong)} of {len(verdicts)} operators wrong (first {_sentence(wrong[0])}), and its "
            "answers would be wrong: update its driver and torch, or give --device cpu; `helix doctor` shows all"
        )
    for sentence in noted:
        logger.warning("%s: %s", name, sentence)


def _sentence(verdict: OperatorVerdict) -> str:
    """``silu in float16 differs: off by 1``."""
    return f"{verdict.operator} in {verdict.dtype} {verdict.status}: {verdict.detail}"
