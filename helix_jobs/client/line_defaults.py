"""LineDefaults: what holds for the lines of a batch that do not say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.acceptance.rule import AcceptanceRule
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.prompt_truncation import TruncatePrompt
from helix_jobs.engine.sampling_params import SAMPLING_FIELDS, SamplingParams
from helix_jobs.errors import InputError, InvalidFieldError
from helix_jobs.intake.lines import LineReader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from helix_jobs.intake.limits import Limits
    from helix_jobs.intake.raw_lines import RejectSink
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

    def reader(self, limits: Limits, rejects: RejectSink | None = None, *, endpoint: str | None = None) -> LineReader:
        """Who reads lines with these defaults.

        Args:
            limits: What a line may ask for at most.
            rejects: Receives the lines that are bad; None for nobody.
            endpoint: Where all lines have to be for; None for any place.
        """
        return LineReader(
            self.sampling,
            limits,
            rejects,
            self.truncate_prompt,
            self.accept,
            constraint=self.constraint,
            endpoint=endpoint,
        )

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
