"""Diagnosis: every check in order, and the verdict over all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from helix_jobs.doctor.software import check_software
from helix_jobs.doctor.verdict import Level, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from helix_jobs.engine.operator_checks import OperatorVerdict
    from helix_jobs.settings import Settings


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What all checks found.

    Attributes:
        verdicts: One or more a check, in order.
        operators: Each operator in each dtype.
    """

    verdicts: tuple[Verdict, ...]
    operators: tuple[OperatorVerdict, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing failed. Warnings are no failure."""
        return all(verdict.level is not Level.FAILED for verdict in self.verdicts)


def diagnose(settings: Settings) -> Diagnosis:
    """Run every check. Without a torch that can be imported, software is all that is looked at."""
    verdicts = check_software(settings)
    if any(verdict.level is Level.FAILED for verdict in verdicts):
        return Diagnosis(tuple(verdicts), ())
    # They import torch, which is known to work only now.
    from helix_jobs.doctor.devices import check_devices, check_kernels
    from helix_jobs.doctor.operators import judge_operators, try_operators

    # Add a check here; what it returns is shown as it is.
    checks: tuple[Callable[[Settings], list[Verdict]], ...] = (check_devices, check_kernels)
    verdicts += [verdict for check in checks for verdict in check(settings)]
    operators = try_operators(settings)
    return Diagnosis((*verdicts, *judge_operators(operators)), operators)
