"""Check that target and draft models are on disk, so that a worker starts without the network, and fit in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from helix_jobs.doctor.model_report import examine, report_models
from helix_jobs.doctor.verdict import Level, Verdict, failure
from helix_jobs.engine.loading.checkpoint import Checkpoint, find_local_checkpoint
from helix_jobs.engine.loading.demo_model import DEMO_MODEL
from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.engine.loading.model_memory import shortage
from helix_jobs.errors import ConfigurationError, HelixError
from helix_jobs.wording import rough_size

if TYPE_CHECKING:
    from helix_jobs.settings import Settings

_COPIES = ("int8", "none")


def check_models(settings: Settings) -> list[Verdict]:
    """Find both models' files, read their headers, and compare what they need with the free memory.

    Nothing is downloaded or loaded.
    """
    if settings.engine == "fake":
        return [Verdict("models", Level.OK, "none: HELIX_ENGINE is fake")]
    if settings.engine == "endpoint":
        return [_check_tokenizer(settings)]
    verdicts = [_check("target model", settings.target_model, settings)]
    try:
        draft = DraftSpec.parse(settings.draft_model).model
    except HelixError as error:
        return [*verdicts, failure("draft model", error)]
    if draft in _COPIES:
        verdicts.append(Verdict("draft model", Level.OK, f"{settings.draft_model}: nothing to download"))
    else:
        verdicts.append(_check("draft model", draft, settings))
    if all(verdict.level is Level.OK for verdict in verdicts):
        verdicts += _check_memory(settings)
    return verdicts


def _check_tokenizer(settings: Settings) -> Verdict:
    """Whether the files are here that the server's model needs here: its tokenizer's."""
    name = settings.target_model
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return Verdict("tokenizer", Level.OK, f"of {name}: read when the worker starts, without weights")
    missing = [file for file in ("config.json", "tokenizer.json") if not (folder / file).is_file()]
    if not missing:
        return Verdict("tokenizer", Level.OK, f"of {name}, without weights")
    remedy = "fetch the tokenizer's files of the model that the server serves"
    return Verdict("tokenizer", Level.FAILED, f"{name} has no {' and no '.join(missing)}", remedy)


def _check_memory(settings: Settings) -> list[Verdict]:
    """Compare what the models need on the device in use with its free memory."""
    subject = "models, memory"
    try:
        place = examine(settings)
    except ConfigurationError:  # the check of devices has said so
        return []
    try:
        (report,) = report_models([settings.target_model], settings, place)
    except HelixError as error:
        return [failure(subject, error)]
    if report.reason is not None:
        return [Verdict(subject, Level.FAILED, report.reason, report.remedy)]
    first = report.fits[0]
    memory = first.memory
    if first.fits is False and place.available is not None:
        finding = shortage(memory, place.device, place.available)
        return [Verdict(subject, Level.FAILED, finding, "; ".join(report.advice))]
    finding = (
        f"{rough_size(memory.loaded)} in {first.chosen.name}, {rough_size(1000 * memory.cache_per_token)} of cache for "
        f"1,000 tokens; the cache holds {first.cache_tokens:,} tokens, {first.sequences:,} sequences of the longest"
    )
    level = Level.OK if first.sequences else Level.WARNING
    return [Verdict(subject, level, finding, "; ".join(report.advice) or None)]


def _check(subject: str, name: str, settings: Settings) -> Verdict:
    try:
        found = find_local_checkpoint(name, settings.home)
    except HelixError as error:
        return failure(subject, error)
    if found is not None:
        parameters = f"{found.parameters / 1e6:,.0f} million parameters"
        finding = f"{name}: {parameters}, {rough_size(_size(found))} in {found.folder}"
        return Verdict(subject, Level.OK, finding)
    size = " (93 MB)" if name == DEMO_MODEL else ""
    finding = f"{name} is not on this machine; the first worker downloads it{size}"
    return Verdict(subject, Level.WARNING, finding, "start a worker once while the network is there")


def _size(checkpoint: Checkpoint) -> int:
    if checkpoint.gguf_file is not None:
        return sum(file.stat().st_size for file in checkpoint.files)
    return sum(file.stat().st_size for file in checkpoint.folder.glob("*.safetensors"))
