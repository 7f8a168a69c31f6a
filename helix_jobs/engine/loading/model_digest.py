"""Digests of what a worker answers with: they tell two models of one name apart.

A model's digest is the SHA-256 of a list: each of its files by name, with its own SHA-256, as ``sha256sum`` prints it.
Its files are those of its weights, and those beside them that say how it is read: configuration, tokenizer, template.
So a copy of a model's folder has its digest, and the same weights in a file of another name have another one.

Trade-off: hashing the weights reads all of them. The digest of a large file is therefore kept under HELIX_HOME, by
path, size and times; who changes a file and puts back its times deceives the manifest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.config import NO_DRAFT
from helix_jobs.engine.devices.kept_file import KeptFile
from helix_jobs.engine.loading.checkpoint import find_local_checkpoint
from helix_jobs.engine.loading.draft_spec import DraftSpec
from helix_jobs.engine.loading.peft_adapter import adapter_digest
from helix_jobs.engine.loading.weight_format import INT8
from helix_jobs.files import file_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from helix_jobs.settings import Settings

# What stands beside the weights and has a part in the answers.
_READ_WITH_IT: Final = (".json", ".jinja", ".model", ".tiktoken", ".txt")
_LARGE: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class ServedDigests:
    """Digests of the models that the settings name.

    Attributes:
        target: Of the target; None where its files are not on this machine.
        draft: Of the draft model; None without one, for a copy of the target, and as above.
        adapters: Name -> digest of an adapter.
    """

    target: str | None = None
    draft: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)


def served_digests(settings: Settings, on_progress: Callable[[str], None]) -> ServedDigests:
    """The digests of the models and adapters that the settings name, once they have been loaded.

    Raises:
        ModelError: A model's files are gone, or others than before.
    """
    draft = DraftSpec.parse(settings.draft_model).model
    has_draft = settings.speculation_depth != 0 and draft not in (NO_DRAFT, INT8)
    return ServedDigests(
        target=model_digest(settings.target_model, settings.home, on_progress),
        draft=model_digest(draft, settings.home, on_progress) if has_draft else None,
        adapters={name: adapter_digest(folder) for name, folder in settings.adapters},
    )


def model_digest(name: str, home: Path, on_progress: Callable[[str], None]) -> str | None:
    """The digest of a model on this machine; None if it is not there.

    Raises:
        ModelError: As ``find_local_checkpoint``.
    """
    found = find_local_checkpoint(name, home)
    if found is None:
        return None
    files = {file.name: file for file in found.files}
    if found.gguf_file is None:
        beside = (file for file in found.folder.iterdir() if file.suffix in _READ_WITH_IT and file.is_file())
        files |= {file.name: file for file in beside}
    # Once for all of its files.
    tell = cache(partial(on_progress, f"reading {name} for its digest, once"))
    total = hashlib.sha256()
    for file_name in sorted(files):
        total.update(f"{_file_digest(files[file_name], home / 'profiles', tell)}  {file_name}\n".encode())
    return total.hexdigest()


def _file_digest(file: Path, kept_in: Path, tell: Callable[[], object]) -> str:
    """The digest of one file; ``tell`` is called before a large one is read."""
    facts = file.stat()
    if facts.st_size < _LARGE:
        return file_sha256(file)
    changes = f"{facts.st_size} {facts.st_ino} {facts.st_mtime_ns} {facts.st_ctime_ns}"
    kept = KeptFile(kept_in, "file-digest", {"file": str(file.resolve()), "changes": changes})
    known = kept.read()
    if isinstance(known, str):
        return known
    tell()
    found = file_sha256(file)
    kept.write(found)
    return found
