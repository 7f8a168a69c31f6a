"""Small frozen dataclasses that configure the engine; each part receives only its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from helix_jobs.errors import ConfigurationError

# Trade-off: higher K means more speed-up potential but more wasted compute on a mismatch.
DEFAULT_SPECULATION_DEPTH: Final = 4
DEFAULT_MAX_BATCH_SIZE: Final = 32
DEFAULT_BLOCK_SIZE: Final = 16
DEFAULT_TOKEN_BUDGET: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheConfig:
    """Size of one model's paged KV cache.

    Attributes:
        num_blocks: Physical blocks in the pool.
        block_size: Tokens a block.

    Trade-off: small blocks waste less memory on the last one of a sequence and share more prefixes; large blocks mean
    shorter block tables. 16 is what vLLM settled on.
    """

    num_blocks: int
    block_size: int = DEFAULT_BLOCK_SIZE

    def __post_init__(self) -> None:
        if self.num_blocks < 1 or self.block_size < 1:
            raise ConfigurationError("a KV cache needs at least one block of one token; raise HELIX_KV_CACHE_MB")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationConfig:
    """How far the drafter runs ahead. ``depth`` is K; 0 turns speculation off."""

    depth: int = DEFAULT_SPECULATION_DEPTH

    def __post_init__(self) -> None:
        if not 0 <= self.depth <= 16:  # noqa: PLR2004  (the bound is the rule)
            raise ConfigurationError(f"speculation depth {self.depth} is out of range; give 0 (off) to 16")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of the batched run.

    Attributes:
        max_batch_size: Sequences that run at once (batch slots).
        token_budget: Tokens of prompt chunks a step computes at most beside the decoding ones.
        max_model_len: Prompt plus output tokens of one request at most; None takes the model's own context length.

    Trade-off: a larger token budget fills the matrix products better but makes the decoding sequences of the same step
    wait longer for their next token.
    """

    max_batch_size: int = DEFAULT_MAX_BATCH_SIZE
    token_budget: int = DEFAULT_TOKEN_BUDGET
    max_model_len: int | None = None
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigurationError(f"max batch size {self.max_batch_size} is out of range; give 1 or more")
        if self.token_budget < 1:
            raise ConfigurationError(f"token budget {self.token_budget} is out of range; give 1 or more")
