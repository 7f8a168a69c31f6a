"""Small frozen dataclasses that configure the engine; each part receives only its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from helix_jobs.bounds import DEFAULT_MAX_BATCH_SIZE, MAX_SPECULATION_DEPTH, interactive_slots
from helix_jobs.errors import ConfigurationError

# Trade-off: higher K means more speed-up potential but more wasted compute on a mismatch.
DEFAULT_SPECULATION_DEPTH: Final = 4
DEFAULT_MAX_DEPTH: Final = 8
NO_DRAFT: Final = "none"
DEFAULT_BLOCK_SIZE: Final = 16
DEFAULT_TOKEN_BUDGET: Final = 1024
DEFAULT_SNAPSHOTS: Final = 64
INT8_CACHE: Final = "int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Size of one model's paged KV cache.

    Attributes:
        num_blocks: Physical blocks in the pool.
        block_size: Tokens a block.
        num_snapshots: States kept for requests that begin alike, if the model has recurrent layers.
        dtype: ``int8`` for keys and values of 8 bits with a scale for each token's head; ``auto`` for the model's own.

    Trade-off: small blocks waste less memory at the end of a sequence and share more prefixes; large blocks mean
    shorter block tables. 16 is vLLM's default.
    """

    num_blocks: int
    block_size: int = DEFAULT_BLOCK_SIZE
    num_snapshots: int = DEFAULT_SNAPSHOTS
    dtype: str = "auto"

    def __post_init__(self) -> None:
        assert self.dtype in {"auto", INT8_CACHE}, "settings and options are checked where they are read"
        if self.num_blocks < 1 or self.block_size < 1:
            raise ConfigurationError("a KV cache needs at least one block of one token; raise HELIX_KV_CACHE_MB")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """Size of one model's cache of recurrent states.

    Attributes:
        num_slots: Sequences that run at once.
        num_snapshots: States kept beside them, for requests that begin alike.
        num_drafts: Draft tokens of a sequence in one step at most.
    """

    num_slots: int
    num_snapshots: int = 0
    num_drafts: int = 0

    @property
    def num_rows(self) -> int:
        """States: for each sequence one that a step reads and one that it writes: a failed step can be repeated."""
        return 2 * self.num_slots + self.num_snapshots

    @property
    def ring(self) -> int:
        """Inputs in a slot: a step replays drafts of the last step and leaves its own behind its one known token."""
        return 2 * self.num_drafts + 1 if self.num_drafts else 0


# What a cache of states takes whatever its size.
NO_STATES: Final = StateConfig(num_slots=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """Which drafters run, and how far ahead.

    Attributes:
        depth: K, the fixed depth of every step unless ``adaptive``; 0 turns speculation off.
        adaptive: Choose the depth of each sequence in each step by its cost and acceptance.
        max_depth: Most draft tokens of a sequence when adaptive.
        drafters: Names of the drafters that find drafts, the preferred one first. The draft model drafts only where
            their drafts promise less than its own.

    Trade-off: a higher ceiling gains more where drafts are nearly always right, and reserves more cache blocks.
    """

    depth: int = DEFAULT_SPECULATION_DEPTH
    adaptive: bool = True
    max_depth: int = DEFAULT_MAX_DEPTH
    drafters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, depth in (("speculation depth", self.depth), ("maximal speculation depth", self.max_depth)):
            if not 0 <= depth <= MAX_SPECULATION_DEPTH:
                raise ConfigurationError(f"{name} {depth} is out of range; give 0 (off) to {MAX_SPECULATION_DEPTH}")

    @property
    def is_on(self) -> bool:
        """Whether a step may ever draft."""
        return self.ceiling > 0

    @property
    def is_adaptive(self) -> bool:
        """Whether each step chooses its depths."""
        return self.is_on and self.adaptive

    @property
    def ceiling(self) -> int:
        """Most draft tokens a sequence can have in any step."""
        return 0 if self.depth == 0 else self.max_depth if self.adaptive else self.depth


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Batch slots and token budget, as in ``EngineConfig``."""

    max_batch_size: int
    token_budget: int


# GPUs that a few dozen rows do not fill, and the memory in bytes from which that holds.
_WIDE_DEVICES: Final = frozenset(("cuda", "xpu"))
_WIDE_MEMORY: Final = 12_000_000_000
_WIDE: Final = BatchLimits(max_batch_size=256, token_budget=4096)
# Tokens of an ordinary job. A batch slot without this much room in the cache only wastes memory.
_USUAL_TOKENS: Final = 512


def defaults_for(device_type: str, total_memory: int | None, cache_tokens: int | None = None) -> BatchLimits:
    """Batch limits for a device when the user sets none.

    Trade-off: on a large GPU a step of 256 sequences takes hardly longer than one of 32, but needs memory for its
    activations. Where the cache holds fewer sequences, that memory is better spent on the cache.

    Args:
        device_type: torch's name of the device; ROCm is ``cuda``.
        total_memory: Bytes of the device's own memory; None if unknown.
        cache_tokens: Tokens whose keys and values fit beside the weights; None if unknown.
    """
    usual = BatchLimits(DEFAULT_MAX_BATCH_SIZE, DEFAULT_TOKEN_BUDGET)
    if device_type not in _WIDE_DEVICES or total_memory is None or total_memory < _WIDE_MEMORY:
        return usual
    slots = _WIDE.max_batch_size
    while cache_tokens is not None and slots > usual.max_batch_size and slots * _USUAL_TOKENS > cache_tokens:
        slots //= 2
    return BatchLimits(slots, _WIDE.token_budget)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of the batched run.

    Attributes:
        max_batch_size: Sequences that run at once (batch slots).
        token_budget: Most prompt tokens that a step computes beside its decodes.
        urgent_slots: Slots that urgent requests hold at most while there is bulk work; None takes half of them.
        max_model_len: Most prompt plus output tokens of one request; None takes the model's own context length.

    Trade-off: a larger token budget fills the matrix products better but makes the decoding sequences of the same step
    wait longer for their next token.
    """

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    token_budget: int = DEFAULT_TOKEN_BUDGET
    max_model_len: int | None = None
    urgent_slots: int | None = None
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigurationError(f"max batch size {self.max_batch_size} is out of range; give 1 or more")
        if self.token_budget < 1:
            raise ConfigurationError(f"token budget {self.token_budget} is out of range; give 1 or more")

    @property
    def slots_for_urgent(self) -> int:
        """Slots that urgent requests hold at most while there is bulk work."""
        return interactive_slots(self.urgent_slots, self.max_batch_size)

    @property
    def step_tokens(self) -> int:
        """The most tokens of one sequence that a step computes, drafts included."""
        return max(self.token_budget, 1 + self.speculation.ceiling)
