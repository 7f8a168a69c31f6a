"""Field names: those a line may hold, other programs' fields that change nothing, and the refusal of all others."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.sampling_params import SAMPLING_FIELDS
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.chat_fields import CHAT_FIELDS
from helix_jobs.intake.constraint_fields import CONSTRAINT_FIELDS
from helix_jobs.intake.line_faults import asks_for_nothing, short
from helix_jobs.intake.logprob_fields import LOGPROB_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.intake.line_faults import Faults

COMMON_FIELDS: Final = frozenset({"custom_id", "priority", "metadata", "accept"})
OPENAI_FIELDS: Final = COMMON_FIELDS | {"method", "url", "body"}
_QUESTION_FIELDS: Final = frozenset(
    {"prompt", "messages", *CHAT_FIELDS, "parallel_tool_calls", "choices", "score_by", "adapter"}
)
# What to keep of a prompt that is too long: our form, and vLLM's.
TRUNCATION_FIELDS: Final = frozenset({"truncate_prompt", "truncate_prompt_tokens"})
# Another name of a sampling field -> the field. OpenAI's, SGLang's and transformers', SGLang's.
SYNONYMS: Final[Mapping[str, str]] = {
    "max_completion_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "no_stop_trim": "include_stop_str_in_output",
    "num_return_sequences": "n",
}
# Fields that do not affect the answer's text: accepted, but only the model is stored, as it may name an adapter.
_HARMLESS: Final = frozenset(
    {
        "model",
        "metadata",
        "user",
        "store",
        "service_tier",
        "stream_options",
        "prompt_cache_key",
        "safety_identifier",
        "request_id",
        "rid",
        "cache_salt",
        "cache_prompt",
        "id_slot",
        "timings_per_token",
        "guided_decoding_backend",
    }
)
# Fields of OpenAI, vLLM, SGLang, llama.cpp and transformers that would change the answer in a way Helix does not offer
# -> the values that, like null, change nothing.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    # OpenAI
    "stream": (False,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "web_search_options": (),
    # vLLM
    "add_special_tokens": (),
    "chat_template": (),
    "detokenize": (True,),
    "documents": ([],),
    "include_reasoning": (True,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncation_side": ("left",),
    "use_beam_search": (False,),
    # SGLang
    "lora_path": (),
    "stop_regex": (),
    # llama.cpp
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "image_data": ([],),
    "mirostat": (0,),
    "n_keep": (0,),
    "return_tokens": (False,),
    "t_max_predict_ms": (0,),
    "tfs_z": (1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
    # transformers
    "early_stopping": (False,),
    "num_beams": (1,),
}
UNSUPPORTED: Final = frozenset(_NEUTRAL)
BODY_FIELDS: Final = (
    SAMPLING_FIELDS
    | CONSTRAINT_FIELDS
    | SYNONYMS.keys()
    | LOGPROB_FIELDS
    | TRUNCATION_FIELDS
    | {"best_of"}
    | _HARMLESS
    | frozenset(_NEUTRAL)
    | _QUESTION_FIELDS
)
NATIVE_FIELDS: Final = COMMON_FIELDS | BODY_FIELDS
# Most lines have no others. One look at these saves them all looks for the rest.
PLAIN_FIELDS: Final = COMMON_FIELDS | {
    *("prompt", "messages", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos"),
}
# The fields that a misspelt name may have meant.
_OWN_FIELDS: Final = (
    COMMON_FIELDS
    | SAMPLING_FIELDS
    | LOGPROB_FIELDS
    | TRUNCATION_FIELDS
    | _QUESTION_FIELDS
    | {"response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"}
)
_BY_SPELLING: Final[Mapping[str, str]] = {name.replace("_", ""): name for name in sorted(_OWN_FIELDS)}
# Least similarity of a misspelling: max_token and max_tokens reach it, min_tokens and max_tokens (opposites) do not.
_ALIKE: Final = 0.85
# Fields that are lists of objects, as requests are that somebody wrapped in an object.
_LISTS_OF_OBJECTS: Final = frozenset({"messages", "tools"})
# Other programs' names of our fields, and fields that have a meaning only elsewhere -> hint.
_HINTS: Final[Mapping[str, str]] = {
    "max_new_tokens": "use max_tokens",
    "maxOutputTokens": "use max_tokens",
    "max_output_tokens": "use max_tokens",
    "max_length": "use max_tokens (it counts new tokens only)",
    "min_length": "use min_tokens (it counts new tokens only)",
    "bad_words_ids": "use bad_words, which holds texts",
    "suppress_tokens": 'use logit_bias, as in {"11": -100}',
    "sequence_bias": "use logit_bias for single tokens",
    "num_predict": "use max_tokens",
    "n_predict": "use max_tokens",
    "repeat_penalty": "use repetition_penalty",
    "text": "use prompt",
    "input": "use prompt or messages",
    "question": "use prompt or messages",
    "conversations": "use messages with role and content",
    "id": "use custom_id",
    "lora": "use adapter, with the name of one that the worker has",
    "lora_request": "use adapter, with the name of one that the worker has",
    "lora_path": "use adapter, with the name of one that the worker has",
    "key": "use custom_id",
    "stop_sequences": "use stop",
    "stopSequences": "use stop",
    "do_sample": "remove it; temperature 0 is greedy",
    "functions": "use tools, which OpenAI's API has in its place",
    "function_call": "use tool_choice, which OpenAI's API has in its place",
    "reasoning": "use reasoning_effort or max_reasoning_tokens",
    "thinking": "use enable_thinking or max_reasoning_tokens",
    "thinking_budget": "use max_reasoning_tokens",
}
# Fields that belong beside a body, not in it.
_BESIDE_BODY: Final[Mapping[str, str]] = {
    "custom_id": "move it beside body",
    "accept": "move it beside body",
    "priority": "move it beside body, as 0 to 9, where higher runs first",
}


def refuse_unknown(values: Mapping[str, Any], known: frozenset[str], faults: Faults, prefix: str = "") -> None:
    """Note every unknown field, with the field that was probably meant."""
    if values.keys() <= known:
        return
    for name in values:
        if faults.is_full:  # a name that was meant takes a while to find
            return
        if name in known:
            continue
        if prefix and name in _BESIDE_BODY:
            # In vLLM a lower priority runs first; 0 is the default in both.
            if values[name] not in (None, 0):
                faults.add(InvalidFieldError(f"{prefix}{name}", "does not stand in body", _BESIDE_BODY[name]))
        else:
            faults.add(InvalidFieldError(f"{prefix}{short(name)}", "is not a known field", _remedy(name, values)))


def refuse_unsupported(values: Mapping[str, Any], faults: Faults, prefix: str = "") -> None:
    """Note every field that asks for a feature Helix does not have."""
    # Pass the keys, not the mapping: isdisjoint walks the smaller of two sets, but the whole of any other iterable.
    if values.keys().isdisjoint(_NEUTRAL.keys()):
        return
    for name in values:
        if name in _NEUTRAL and not asks_for_nothing(values[name], _NEUTRAL[name]):
            reason = "asks for something Helix does not do"
            faults.add(InvalidFieldError(f"{prefix}{name}", reason, _HINTS.get(name, "remove it")))


def _remedy(name: str, values: Mapping[str, Any]) -> str:
    if name in _HINTS:
        return _HINTS[name]
    spelling = name[:64].lower().replace("_", "").replace("-", "")
    near = difflib.get_close_matches(spelling, _BY_SPELLING, n=1, cutoff=_ALIKE)
    meant = _BY_SPELLING[near[0]] if near else None
    value = values[name]
    is_list_of_objects = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    if is_list_of_objects and name.isidentifier() and meant not in _LISTS_OF_OBJECTS:
        return f"if it holds the requests, make lines of them with: jq -c '.{name}[]'"
    return "remove it" if meant is None else f"did you mean {meant}?"
