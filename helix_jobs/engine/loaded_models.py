"""LoadedModel and LoadedModels: what loading hands to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.text.prompt_encoder import PromptEncoder


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model in memory, on its device.

    Attributes:
        name: What the person called it.
        decoder: The model. Its dtype may differ from what was asked when float16 would have overflowed.
        is_int8: Its linear layers are int8; ``decoder.dtype`` is that of its activations.
        is_copy: It is the target itself, quantised.
        overflowed: It was to run in float16, and its weights or activations do not fit into that.
        is_reproducible: What it computes for a sequence does not depend on what is computed beside it.
    """

    name: str
    decoder: Decoder
    is_int8: bool = False
    is_copy: bool = False
    overflowed: bool = False
    is_reproducible: bool = False

    @property
    def dtype_name(self) -> str:
        """``int8``, or the dtype of weights and activations."""
        return "int8" if self.is_int8 else str(self.decoder.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """Target and draft, ready to serve.

    Attributes:
        target: Whose answers are given.
        draft: What proposes them; None when the draft is ``none``.
        tokenizer: The target's; its vocabulary is the draft's too.
        eos_token_ids: Tokens that end an output.
        turn_end_ids: Tokens that, beside these, end an answer to messages.
        vocab_size: Token ids the target may emit; its head can have more rows, as padding.
        max_context: Positions the target was made for, prompt and output together.
        prompts: Encodes prompts, its processes started; None leaves that to whoever needs one.
    """

    target: LoadedModel
    draft: LoadedModel | None
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    vocab_size: int
    max_context: int
    turn_end_ids: frozenset[int] = frozenset()
    prompts: PromptEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return self.target.decoder.device
