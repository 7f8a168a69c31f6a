"""Verdicts by what they are about; one that is not good must say what to do."""

from __future__ import annotations

from helix_jobs.doctor.verdict import Level

OK, WARNING, FAILED = Level


def levels(verdicts):
    return {verdict.subject: verdict.level for verdict in verdicts}


def only(verdicts, subject):
    (found,) = [verdict for verdict in verdicts if verdict.subject == subject]
    if found.level is not OK:
        assert found.remedy, f"{subject}: no remedy"
    return found
