"""Diagnosis: every check in order, and the verdict over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helix_jobs.doctor.broker import check_broker
from helix_jobs.doctor.database import check_database
from helix_jobs.doctor.home import check_home
from helix_jobs.doctor.metrics import check_metrics
from helix_jobs.doctor.software import check_software
from helix_jobs.doctor.verdict import Level, Verdict
from helix_jobs.redaction import redact
from helix_jobs.settings import Settings

if TYPE_CHECKING:
    from helix_jobs.engine.operator_checks import OperatorVerdict

_Check = Callable[[Settings], list[Verdict]]


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
    """Run every check. Without a torch that can be imported, nothing is said of devices and models."""
    services: tuple[_Check, ...] = (check_home, check_database, check_broker, check_metrics)
    software = check_software(settings)
    around = [verdict for check in services for verdict in check(settings)]
    operators: tuple[OperatorVerdict, ...] = ()
    engine: list[Verdict] = []
    if all(verdict.level is not Level.FAILED for verdict in software):
        # They import torch, which is known to work only now.
        from helix_jobs.doctor.devices import check_devices, check_kernels
        from helix_jobs.doctor.models import check_models
        from helix_jobs.doctor.operators import judge_operators, try_operators

        # Add a check here; what it returns is shown as it is.
        checks: tuple[_Check, ...] = (check_devices, check_kernels, check_models)
        engine = [verdict for check in checks for verdict in check(settings)]
        operators = try_operators(settings)
        engine += judge_operators(operators)
    return Diagnosis(tuple(_redacted(verdict) for verdict in (*software, *engine, *around)), operators)


def _redacted(verdict: Verdict) -> Verdict:
    """Whoever puts a URL into a verdict redacts it; this catches what libraries put into their messages."""
    remedy = None if verdict.remedy is None else redact(verdict.remedy)
    return replace(verdict, finding=redact(verdict.finding), remedy=remedy)
