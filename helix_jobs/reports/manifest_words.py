"""The words of a manifest: what a batch was submitted with, and what answered it. Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from helix_jobs.storage.manifests import Maker

# A part of a setup -> what it is called.
_WORDS: Final[Mapping[str, str]] = {
    "helix": "Helix",
    "engine": "Engine",
    "target": "Target",
    "draft": "Draft",
    "digests": "Digests",
    "adapters": "Adapters",
    "dtype": "Dtype",
    "device": "Device",
    "kernels": "Kernels",
    "speculation_depth": "Depth",
    "is_reproducible": "Same in any company",
    "max_batch_size": "Slots",
    "max_model_len": "Context",
    "kv_cache_bytes": "KV cache bytes",
    "libraries": "Libraries",
    "python": "Python",
    "system": "System",
}


def options_in_words(defaults: Mapping[str, Any], metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Label and value of what held for all lines, of the table that was read, and of what its submitter noted."""
    options = dict(defaults)
    if (table := options.pop("table", None)) is not None:
        yield "Rows read", f"{table['rows']:,}"
        yield "Rows' digest", table["digest"]
    for name, value in options.items():
        yield f"Default {name}", _text(value)
    for name, value in metadata.items():
        yield f"Metadata {name}", _text(value)


def alike(makers: Sequence[Maker]) -> list[list[Maker]]:
    """Workers in groups: those of a group differ in nothing that their answers depend on."""
    groups: dict[str, list[Maker]] = {}
    for maker in makers:
        known = json.dumps([maker.setup, maker.target_model, maker.draft_model, maker.device], sort_keys=True)
        groups.setdefault(known, []).append(maker)
    return list(groups.values())


def makers_in_words(makers: Sequence[Maker]) -> Iterator[tuple[str, str]]:
    """Label and value of what workers are that are ``alike``."""
    named = ", ".join(f"{maker.worker_id} ({counted(maker.jobs, 'job')})" for maker in makers)
    yield ("Worker" if len(makers) == 1 else "Workers"), named
    setup = makers[0].setup
    if setup is not None:
        for key, value in setup.items():
            yield _WORDS.get(key, key), _text(value)
        return
    known = {"Target": makers[0].target_model, "Draft": makers[0].draft_model, "Device": makers[0].device}
    yield from ((label, value) for label, value in known.items() if value)
    yield "Setup", "not known: an older version of Helix answered, or its row is gone"


def _text(value: Any) -> str:  # noqa: ANN401  (JSON)
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict) and set(value) <= {"name", "digest"} and "name" in value:
        digest = f", sha256 {value['digest']}" if "digest" in value else ""
        return f"{value['name']}{digest}"
    if isinstance(value, dict) and value and all(isinstance(inner, str) for inner in value.values()):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return json.dumps(value, ensure_ascii=False)
