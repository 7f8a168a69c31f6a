"""BenchPlan: the measurements of one call of ``helix bench``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from helix_jobs.bench.report import Case
from helix_jobs.bench.workloads import WORKLOADS, Workload, WorkloadOptions

if TYPE_CHECKING:
    from pathlib import Path

    from helix_jobs.bench.modes import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlan:
    """Workload, modes, models and peers.

    Attributes:
        command: The command line, for the report.
        workload: Its name.
        modes: The modes that are compared.
        batch_sizes: Batch slots; each size is measured separately.
        repeat: Rounds; in each round every mode and then every peer runs once.
        target: Target model as ``load_models`` takes it.
        dtype: Dtype as ``load_models`` takes it.
        device: Device name, or None for the first available.
        home: HELIX_HOME, where the demo model is kept.
        compile: ``auto``, ``on`` or ``off``, see ``with_compiled_kernels``.
        reproducible: ``auto`` or ``on``, see ``make_reproducible``.
        kv_cache_mb: Limit of keys and values; None fits the workload.
        kv_cache_dtype: Number format of keys and values, as in ``Settings``.
        peers: Pairs of a peer's name and its interpreter.
        sample: Number of requests, or None.
        seed: Which prompts are picked.
        max_tokens: New tokens at most, or None.
        prompt_tokens: Length of long or shared prompts, or None.
        prompts: JSONL file to take prompts from, or None.
    """

    command: str
    workload: str
    modes: tuple[Mode, ...]
    batch_sizes: tuple[int, ...]
    repeat: int
    target: str
    dtype: str
    device: str | None
    home: Path
    compile: str = "auto"
    reproducible: str = "auto"
    kv_cache_mb: int | None = None
    kv_cache_dtype: str = "auto"
    peers: tuple[tuple[str, str], ...] = ()
    sample: int | None = None
    seed: int = 7
    max_tokens: int | None = None
    prompt_tokens: int | None = None
    prompts: Path | None = None

    @property
    def kind(self) -> Workload:
        """The workload itself."""
        return WORKLOADS[self.workload]

    @property
    def drafts(self) -> tuple[str, ...]:
        """The drafts that modes need, each once."""
        return tuple(dict.fromkeys(mode.draft for mode in self.modes if not mode.is_off))

    def cases(self, batch_size: int, variant: str) -> tuple[Case, ...]:
        """The modes at one batch size over one variant."""
        return tuple(Case(mode, batch_size, variant) for mode in self.modes)

    def workload_options(self, batch_size: int) -> WorkloadOptions:
        """The workload's options at a batch size."""
        return WorkloadOptions(
            batch_size=batch_size,
            sample=self.sample,
            seed=self.seed,
            max_tokens=self.max_tokens,
            prompt_tokens=self.prompt_tokens,
            file=self.prompts,
        )

    def workload_json(self) -> dict[str, Any]:
        """The workload's name and parameters, defaults filled in, for programs."""
        kind = self.kind
        from_file = self.prompts is not None
        return {
            "name": kind.name,
            "prompts": None if self.prompts is None else self.prompts.name,
            "sample": self.sample or (None if from_file else kind.requests or None),
            "seed": self.seed,
            "max_tokens": self.max_tokens or kind.max_tokens,
            "prompt_tokens": self.prompt_tokens or kind.prompt_tokens,
            "ignore_eos": kind.ignore_eos,
            # Peers only decode greedily, so with peers Helix does too, whatever the lines ask for.
            "forced_greedy": bool(self.peers),
            "repeat": self.repeat,
            "kv_cache_mb": self.kv_cache_mb,
            "kv_cache_dtype": self.kv_cache_dtype,
        }
