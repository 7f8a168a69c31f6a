"""Diagnosis: runs every check in order and gives the overall verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from helix_jobs.doctor.broker import check_broker
from helix_jobs.doctor.database import check_database
from helix_jobs.doctor.home import check_home
from helix_jobs.doctor.metrics_port import check_metrics
from helix_jobs.doctor.software import check_software
from helix_jobs.doctor.verdict import Level, Verdict
from helix_jobs.redaction import redact
from helix_jobs.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.engine.devices.operator_checks import OperatorVerdict

_Check = Callable[[Settings], list[Verdict]]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdicts of all checks.

    Attributes:
        verdicts: One or more for each check, in order.
        operators: One for each operator in each dtype.
    """

    verdicts: tuple[Verdict, ...]
    operators: tuple[OperatorVerdict, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether no check failed. Warnings are not failures."""
        return all(verdict.level is not Level.FAILED for verdict in self.verdicts)


def diagnose(settings: Settings) -> Diagnosis:
    """Run every check. If torch cannot be imported, the checks of devices and models are left out."""
    services = {"home": check_home, "database": check_database, "broker": check_broker, "metrics port": check_metrics}
    software = check_software(settings)
    around = _run(services, settings)
    operators: tuple[OperatorVerdict, ...] = ()
    engine: list[Verdict] = []
    if all(verdict.level is not Level.FAILED for verdict in software):
        # These modules import torch, which is known to work only now.
        from helix_jobs.doctor.devices import check_devices, check_kernels
        from helix_jobs.doctor.endpoint import check_endpoint
        from helix_jobs.doctor.models import check_models
        from helix_jobs.doctor.operators import judge_operators, try_operators

        # Add a check here; what it returns is shown as it is.
        checks: dict[str, _Check] = {"models": check_models}
        is_own = settings.engine != "endpoint"  # otherwise nothing is computed here
        if is_own:
            checks = {"devices": check_devices, "compiled kernels": check_kernels, **checks}
        else:
            checks = {"endpoint": check_endpoint, **checks}
        engine = _run(checks, settings)
        if is_own:
            operators = try_operators(settings)
            engine += judge_operators(operators)
    return Diagnosis(tuple(_redacted(verdict) for verdict in (*software, *engine, *around)), operators)


def _run(checks: Mapping[str, _Check], settings: Settings) -> list[Verdict]:
    """Run the checks. An unforeseen system error in one check does not prevent the others."""
    verdicts = []
    for subject, check in checks.items():
        try:
            verdicts += check(settings)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            finding = f"cannot be examined: {where}{error.strerror or error}"
            remedy = "correct what the system says, and run helix doctor again"
            verdicts.append(Verdict(subject, Level.FAILED, finding, remedy))
    return verdicts


def _redacted(verdict: Verdict) -> Verdict:
    """Redact URLs that libraries put into their messages; the checks redact their own."""
    remedy = None if verdict.remedy is None else redact(verdict.remedy)
    return replace(verdict, finding=redact(verdict.finding), remedy=remedy)
