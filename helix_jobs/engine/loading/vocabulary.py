"""The vocabulary that target and draft must share, and the tokens that end an output."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from helix_jobs.engine.text.codec import special_tokens
from helix_jobs.errors import ModelError, TokenizerMismatchError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

    from helix_jobs.engine.text.template_probe import Probe

logger = logging.getLogger(__name__)


def check_vocabularies(target_name: str, target: Mapping[str, int], draft_name: str, draft: Mapping[str, int]) -> None:
    """Refuse a draft whose token ids mean other tokens than the target's.

    Ids are compared token by token. Embedding widths are not compared: checkpoints of one family pad them differently.

    Raises:
        TokenizerMismatchError: The message shows the first id that differs.
    """
    if target == draft:
        return
    target_tokens = {token_id: token for token, token_id in target.items()}
    draft_tokens = {token_id: token for token, token_id in draft.items()}
    differing = [i for i in target_tokens.keys() | draft_tokens.keys() if target_tokens.get(i) != draft_tokens.get(i)]
    first = min(differing, default=0)
    raise TokenizerMismatchError(
        f"draft {draft_name} does not share the vocabulary of target {target_name}: {len(differing)} ids differ, the "
        f"first is {first} ({target_tokens.get(first)!r} in the target, {draft_tokens.get(first)!r} in the draft); "
        "use a smaller model of the target's family, int8 or none"
    )


def end_token_ids(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, generation: GenerationConfig | None
) -> frozenset[int]:
    """Token ids that end any output: those of the generation config, or else of the config, and of the tokenizer.

    Raises:
        ModelError: One of the ids is not a number.
    """
    ids: list[object] = []
    sources = [getattr(generation, "eos_token_id", None), tokenizer.eos_token_id]
    if generation is None or generation.eos_token_id is None:
        sources.append(config.eos_token_id)
    for source in sources:
        if source is not None:
            ids.extend(source if isinstance(source, list | tuple) else [source])
    if strange := [token_id for token_id in ids if not isinstance(token_id, int)]:
        raise ModelError(f"the model's files name {strange[0]!r:.40} as an end token (eos_token_id); correct that line")
    return frozenset(token_id for token_id in ids if isinstance(token_id, int))


def turn_end_ids(tokenizer: PreTrainedTokenizerBase, probe: Probe | None) -> frozenset[int]:
    """Token ids that end an answer to messages: the special token that the template writes after an assistant's words.

    The token may have any name, and white space may stand before it. A plain prompt has no turns: a base model with a
    template goes on past this token, as in transformers.
    """
    if probe is None:
        return frozenset()
    if probe.after_answer is None:
        logger.warning("the chat template cannot render an assistant turn; its end token is unknown")
        return frozenset()
    after = probe.after_answer.lstrip()
    ends = [pair for pair in special_tokens(tokenizer).items() if after.startswith(pair[0])]
    return frozenset([max(ends, key=lambda pair: len(pair[0]))[1]] if ends else [])
