"""The fields of a line that wants options scored instead of an answer made, and what has no meaning beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.errors import InvalidFieldError
from helix_jobs.intake.combinations import ANSWER_AND_CHOICES, SAMPLING_AND_CHOICES
from helix_jobs.intake.known_fields import UNSUPPORTED
from helix_jobs.intake.line_faults import Faults, asks_for_nothing, kind
from helix_jobs.intake.sampling_fields import SamplingReader

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLAIN: Final = SamplingReader(SamplingParams())
# A sampling field -> other names under which a line may have given it.
_SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "max_tokens": ("max_completion_tokens",),
    "logprobs": ("top_logprobs", "n_probs"),
}
# Fields that ask for a form of the answer or for what comes before it, and the values with which they ask for nothing.
# Those that are not served at all are refused as such, see ``known_fields``.
_OF_AN_ANSWER: Final = (
    *("response_format", "structured_outputs", "guided_json", "guided_json_object", "guided_regex", "guided_choice"),
    *("guided_grammar", "regex", "ebnf", "json_schema", "grammar"),
    *("tools", "max_reasoning_tokens", "thinking_token_budget"),
)
_NOTHING: Final[tuple[Any, ...]] = (False, [], "", {"type": "text"})


def read_choices(values: Mapping[str, Any], prefix: str = "") -> ScoreChoices | None:
    """The options that a line wants scored; None: it wants an answer.

    Raises:
        InvalidFieldError: ``choices`` or ``score_by`` is wrong.
    """
    choices, by = values.get("choices"), values.get("score_by")
    if choices is None:
        if by is not None:
            raise InvalidFieldError(f"{prefix}score_by", "stands without choices", "give choices as well, or remove it")
        return None
    if not isinstance(choices, list):
        raise InvalidFieldError(f"{prefix}choices", f"is {kind(choices)}", 'give a list such as ["yes", "no"]')
    try:
        return ScoreChoices(options=tuple(choices), by="sum" if by is None else by)
    except InvalidFieldError as error:
        raise InvalidFieldError(prefix + error.field, error.reason, error.remedy) from error


def read_sampling_beside_choices(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The stored sampling fields of a line with choices: its seed at most. Defaults of the batch do not apply.

    Raises:
        InvalidFieldError: A field asks how text is to be made.
        InvalidFieldsError: Several do.
    """
    stored = _PLAIN.read(values, prefix)
    faults = Faults()
    for name in stored:
        if name != "seed":
            given = next((one for one in (name, *_SYNONYMS.get(name, ())) if values.get(one) is not None), name)
            faults.add(SAMPLING_AND_CHOICES.error(f"{prefix}{given}"))
    for name in _OF_AN_ANSWER:
        if name not in UNSUPPORTED and not asks_for_nothing(values.get(name), _NOTHING):
            faults.add(ANSWER_AND_CHOICES.error(f"{prefix}{name}"))
    faults.settle()
    return stored
