"""The model files that a peer needs on this machine: directories, and GGUF files beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from helix_jobs.bench.model_shelf import longest
from helix_jobs.bench.peer import NEEDS_DRAFT, READS_GGUF, PeerError, PeerJob, PeerProcess, peer_command
from helix_jobs.engine.config import NO_DRAFT
from helix_jobs.engine.loading.checkpoint import find_checkpoint
from helix_jobs.engine.loading.weight_format import INT8

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from helix_jobs.bench.model_shelf import ModelShelf
    from helix_jobs.bench.plan import BenchPlan
    from helix_jobs.engine.loading.checkpoint import Checkpoint
    from helix_jobs.engine.request import EncodedRequest

_NO_MODELS = frozenset({INT8, NO_DRAFT})


def start_peer(
    name: str,
    python: str,
    plan: BenchPlan,
    shelf: ModelShelf,
    *,
    batch_size: int,
    requests: Sequence[EncodedRequest],
    on_progress: Callable[[str], None],
) -> tuple[PeerProcess, PeerJob]:
    """Start a peer's process; it must then load the returned job.

    Raises:
        PeerError: The peer cannot run here, or cannot read any stored form of a model.
    """
    target = find_checkpoint(plan.target, plan.home, on_progress)
    draft = _draft_folder(name, plan, on_progress) if name in NEEDS_DRAFT else None
    gguf = _gguf_file(name, target) if name in READS_GGUF else None
    if target.gguf_file is not None and name not in READS_GGUF:
        raise PeerError(f"peer {name} reads model directories, and the target is a GGUF file; give its directory")
    job = PeerJob(
        model=str(target.folder),
        gguf=None if gguf is None else str(gguf),
        draft=draft,
        dtype=str(shelf.decoder.dtype).removeprefix("torch."),
        batch_size=batch_size,
        max_model_len=longest(requests),
        kv_cache_bytes=shelf.kv_cache_bytes(batch_size, requests),
        num_threads=torch.get_num_threads(),
    )
    return PeerProcess(name, peer_command(name, python), job.num_threads), job


def _gguf_file(name: str, target: Checkpoint) -> Path:
    if target.gguf_file is not None:
        return target.folder / target.gguf_file
    files = sorted(target.folder.glob("*.gguf"))
    if len(files) != 1:
        found = "none" if not files else f"{len(files)} of them"
        raise PeerError(
            f"peer {name} reads a GGUF file, and there is {found} in {target.folder}; put one beside the model"
        )
    return files[0]


def _draft_folder(name: str, plan: BenchPlan, on_progress: Callable[[str], None]) -> str:
    models = [mode.draft_spec.model for mode in plan.modes if mode.draft_spec.model not in _NO_MODELS]
    if not models:
        raise PeerError(f"peer {name} needs a draft model of its own; give --draft MODEL and a speculation mode")
    draft = find_checkpoint(models[0], plan.home, on_progress)
    if draft.gguf_file is not None:
        raise PeerError(f"peer {name} reads model directories, and the draft is a GGUF file; give its directory")
    return str(draft.folder)
