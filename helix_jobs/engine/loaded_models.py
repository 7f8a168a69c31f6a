"""LoadedModel and LoadedModels: the models that the loader hands to the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from helix_jobs.engine.model.quantize import packed_kind
from helix_jobs.engine.text.chat_forms import ChatForms

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from helix_jobs.engine.model.decoder import Decoder
    from helix_jobs.engine.text.prompt_encoder import PromptEncoder


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model in memory, on its device.

    Attributes:
        name: The model's name, as the user gave it.
        decoder: The model. Its dtype is not the requested float16 where that would have overflowed.
        is_int8: Its linear layers are int8; ``decoder.dtype`` is the dtype of its activations.
        is_copy: This draft is the target itself, quantised.
        overflowed: float16 was requested, and the weights or activations exceed its range.
        is_reproducible: What the model computes for a sequence does not depend on the rest of the batch.
    """

    name: str
    decoder: Decoder
    is_int8: bool = False
    is_copy: bool = False
    overflowed: bool = False
    is_reproducible: bool = False

    @property
    def dtype_name(self) -> str:
        """``int8``, the weights' type of blocks (``q4_k``), or the dtype of weights and activations."""
        if self.is_int8:
            return "int8"
        return packed_kind(self.decoder) or str(self.decoder.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class LoadedAdapter:
    """One of the adapters that the target holds, see ``with_adapters``.

    Attributes:
        name: The name by which requests choose it.
        digest: Of its files: what one adapter has computed must never be taken for what another computes.
    """

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """Target and draft, ready to serve.

    Attributes:
        target: The model that answers.
        draft: The model that drafts; None when the draft is ``none``.
        tokenizer: The target's. The draft has the same vocabulary.
        eos_token_ids: Tokens that end an output.
        turn_end_ids: Further tokens that end an answer to chat messages.
        vocab_size: Token ids the target may emit; its head can have more rows, as padding.
        max_context: Positions the target was made for, prompt and output together.
        chat_forms: How the target's answers to messages are read.
        prompts: Encodes prompts, its processes already started; None lets the codec build its own.
        adapters: Those of the target, in the order in which it counts them. The draft has none: it drafts for every
            request as for the target itself, and verification makes the answer the adapter's own.
    """

    target: LoadedModel
    draft: LoadedModel | None
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    vocab_size: int
    max_context: int
    turn_end_ids: frozenset[int] = frozenset()
    chat_forms: ChatForms = field(default_factory=ChatForms)
    prompts: PromptEncoder | None = None
    adapters: tuple[LoadedAdapter, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return self.target.decoder.device
