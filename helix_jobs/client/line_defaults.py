"""LineDefaults: what holds for the lines of a batch that do not say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.prompt_truncation import TruncatePrompt
from helix_jobs.engine.sampling_params import SAMPLING_FIELDS, SamplingParams
from helix_jobs.errors import InputError, InvalidFieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.storage.manifests import Manifest

_PLAIN: Final = SamplingParams()


@dataclass(frozen=True, slots=True)
class LineDefaults:
    """What holds for the lines of a batch that do not say otherwise.

    Attributes:
        sampling: Sampling fields.
        truncate_prompt: What to keep of a prompt that is too long; None fails its job.
        accept: When an answer counts; None for any.
        constraint: The form of an answer; None for any.
        cache: Whether lines take answers that are stored already; None where each is repeatable.
    """

    sampling: SamplingParams = _PLAIN
    truncate_prompt: TruncatePrompt | None = None
    accept: AcceptanceRule | None = None
    constraint: Constraint | None = None
    cache: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The batch's stored defaults, under the names that a stored request has."""
        others = {"truncate_prompt": self.truncate_prompt, "accept": self.accept, "constraint": self.constraint}
        given = {name: value.to_dict() for name, value in others.items() if value is not None}
        cache = {} if self.cache is None else {"cache": self.cache}
        return self.sampling.to_dict() | given | cache

    @classmethod
    def of_batch(cls, manifest: Manifest) -> LineDefaults:
        """Those of a stored batch.

        Raises:
            InputError: Another version of Helix wrote them, or somebody changed them by hand.
        """
        try:
            return cls._from_stored(manifest.defaults)
        except (InvalidFieldError, TypeError) as error:
            raise InputError(
                f"the defaults of batch {manifest.batch_id} cannot be repeated here ({error}); submit without its name "
                "and give the options yourself"
            ) from error

    @classmethod
    def _from_stored(cls, stored: Mapping[str, Any]) -> LineDefaults:
        truncation, accept, constraint = (stored.get(name) for name in ("truncate_prompt", "accept", "constraint"))
        return cls(
            SamplingParams.from_mapping({name: value for name, value in stored.items() if name in SAMPLING_FIELDS}),
            truncate_prompt=None if truncation is None else TruncatePrompt.from_mapping(truncation),
            accept=None if accept is None else AcceptanceRule.from_mapping(accept),
            constraint=None if constraint is None else Constraint.from_mapping(constraint),
            cache=stored.get("cache"),
        )
