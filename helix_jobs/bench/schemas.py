"""SchemaBench: how much of JSON Schema is kept, on schemas with valid and invalid instances.

Each file has MaskBench's form: ``{"schema": ..., "tests": [{"data": ..., "valid": true}, ...]}``. Each schema goes the
way of a submitted line: it is checked, compiled for a vocabulary, and followed along its instances.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from helix_jobs.bench.percentiles import Percentiles
from helix_jobs.bench.spelling import Spelling, spell
from helix_jobs.engine.constraint import Constraint
from helix_jobs.engine.grammar.llguidance_grammar import compile_grammar
from helix_jobs.engine.grammar.vocabulary import TokenTable
from helix_jobs.engine.loading.pretrained import read_tokenizer
from helix_jobs.engine.matcher import GrammarError
from helix_jobs.errors import InputError, InvalidFieldError
from helix_jobs.intake.constraint_fields import read_constraint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llguidance import LLTokenizer

_PROGRESS_FILES: Final = 500
# Bytes of a token that is looked for; few are longer.
_LONGEST_TOKEN: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaReport:
    """What came of the schemas.

    Attributes:
        schemas: Schemas read.
        compiled: Schemas that were kept and compiled.
        refused: Schemas refused at submission, by the word at fault or the reason.
        not_compiled: Schemas that the check let pass and the library then refused, by file.
        as_written: Valid instances that fit as they are written, apart from white space.
        respelt: Valid instances that fit with the properties in the schema's order, or with a number spelt in another
            way: 2 for 2.0, 0.001 for 1e-3.
        valid_refused: Valid instances that fit in no spelling, as file and number.
        invalid_refused: Invalid instances that fit in no spelling.
        invalid_accepted: Invalid instances that fit in some spelling, as file and number.
        tokens: Tokens of the valid instances, for each of which a mask was made.
        check_seconds: Time of the check of each schema.
        compile_seconds: Time to compile each kept schema for the vocabulary.
        mask_seconds: Time of each mask.
        complete: All files were read.
    """

    schemas: int
    compiled: int
    refused: dict[str, int]
    not_compiled: tuple[str, ...]
    as_written: int
    respelt: int
    valid_refused: tuple[str, ...]
    invalid_refused: int
    invalid_accepted: tuple[str, ...]
    tokens: int
    check_seconds: Percentiles | None
    compile_seconds: Percentiles | None
    mask_seconds: Percentiles | None
    complete: bool

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


@dataclass(slots=True)
class _Found:
    schemas: int = 0
    compiled: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    not_compiled: list[str] = field(default_factory=list)
    spellings: Counter[tuple[bool, Spelling]] = field(default_factory=Counter)
    valid_refused: list[str] = field(default_factory=list)
    invalid_accepted: list[str] = field(default_factory=list)
    checks: list[float] = field(default_factory=list)
    compiles: list[float] = field(default_factory=list)
    masks: list[float] = field(default_factory=list)


class SchemaBench:
    """Runs all schemas of a folder. ``report`` may be called at any time.

    Args:
        files: The schemas' files.
        tokenizer: The vocabulary that they are compiled for.
        on_progress: Receives one line now and then.
    """

    def __init__(self, files: Sequence[Path], tokenizer: LLTokenizer, on_progress: Callable[[str], None]) -> None:
        self._files = files
        self._tokenizer = tokenizer
        self._progress = on_progress
        self._found = _Found()
        self._mask = np.zeros((tokenizer.vocab_size + 31) // 32 * 4, dtype=np.uint8)

    def run(self) -> None:
        """Read, check, compile and follow every schema.

        Raises:
            InputError: A file is not of MaskBench's form.
        """
        for number, file in enumerate(self._files):
            if number % _PROGRESS_FILES == 0:
                self._progress(f"schema {number + 1:,} of {len(self._files):,}")
            try:
                case = json.loads(file.read_text(encoding="utf-8"))
                schema, tests = case["schema"], [(test["data"], test["valid"]) for test in case["tests"]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{file} is no schema with tests ({error}); give a folder of MaskBench's data"
                ) from error
            self._run_one(file.stem, schema, tests)
            self._found.schemas += 1

    def report(self) -> SchemaReport:
        """The results so far."""
        found = self._found
        return SchemaReport(
            schemas=found.schemas,
            compiled=found.compiled,
            refused=dict(found.refused.most_common()),
            not_compiled=tuple(found.not_compiled),
            as_written=found.spellings[True, Spelling.AS_WRITTEN],
            respelt=found.spellings[True, Spelling.OTHER],
            valid_refused=tuple(found.valid_refused),
            invalid_refused=found.spellings[False, Spelling.NONE],
            invalid_accepted=tuple(found.invalid_accepted),
            tokens=len(found.masks),
            check_seconds=Percentiles.of(found.checks),
            compile_seconds=Percentiles.of(found.compiles),
            mask_seconds=Percentiles.of(found.masks),
            complete=found.schemas == len(self._files),
        )

    def _run_one(self, name: str, schema: object, tests: list[tuple[Any, bool]]) -> None:
        found, start = self._found, time.perf_counter()
        try:
            stored = read_constraint({"guided_json": schema})
        except InvalidFieldError as error:
            found.refused[_word_at_fault(error)] += 1
            return
        finally:
            found.checks.append(time.perf_counter() - start)
        assert stored is not None, "a schema is given"
        constraint = Constraint.from_mapping(stored)
        start = time.perf_counter()
        try:
            grammar = compile_grammar(constraint, self._tokenizer)
        except GrammarError:
            found.not_compiled.append(name)
            return
        found.compiles.append(time.perf_counter() - start)
        found.compiled += 1
        for number, (data, is_valid) in enumerate(tests):
            spelling, text = spell(constraint, data)
            found.spellings[is_valid, spelling] += 1
            if not is_valid and spelling is not Spelling.NONE:
                found.invalid_accepted.append(f"{name} {number}")
            elif is_valid and not (text is not None and self._follow(grammar.matcher(), text)):
                found.valid_refused.append(f"{name} {number}")

    def _follow(self, matcher: Any, text: str) -> bool:  # noqa: ANN401  (the engine's matcher)
        """Go along a text token by token, as the engine does; False if a token is masked out, or a limit reached."""
        try:
            return self._walk(matcher, text)
        except GrammarError:
            return False

    def _walk(self, matcher: Any, text: str) -> bool:  # noqa: ANN401  (as above)
        rest = text.encode(errors="surrogatepass")
        while rest:
            for token_id in self._tokenizer.tokenize_bytes(rest):
                start = time.perf_counter()
                matcher.fill_mask(self._mask)
                self._found.masks.append(time.perf_counter() - start)
                allowed = token_id if self._allows(token_id) else self._other_token(rest)
                if allowed is None or matcher.advance([allowed]) != 1:
                    return False
                rest = rest[len(self._tokenizer.decode_bytes([allowed])) :]
                if allowed != token_id:
                    break
        return bool(matcher.is_accepting)

    def _other_token(self, rest: bytes) -> int | None:
        """The longest token that the mask allows and that a text goes on with; None if there is none.

        Of a text that is forced the mask allows one token at a time, which may not be the tokenizer's own choice.
        """
        for length in range(min(len(rest), _LONGEST_TOKEN), 0, -1):
            token_ids = self._tokenizer.tokenize_bytes(rest[:length])
            if len(token_ids) == 1 and self._allows(token_ids[0]):
                return int(token_ids[0])
        return None

    def _allows(self, token_id: int) -> bool:
        return bool(self._mask[token_id >> 3] >> (token_id & 7) & 1)


def vocabulary_of(folder: Path) -> LLTokenizer:
    """The vocabulary of a model's tokenizer.

    Raises:
        InputError: The folder holds no tokenizer that can be read.
    """
    try:
        tokenizer = read_tokenizer(str(folder), {})
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no tokenizer that can be read; give a model's folder") from error
    ends = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    return TokenTable.of(tokenizer, len(tokenizer), ends).build()


def _word_at_fault(error: InvalidFieldError) -> str:
    """The refused word of JSON Schema, or the reason where the fault lies in the whole or in a name of the author's."""
    word = error.field.rsplit(".", 1)[-1].partition("[")[0]
    if "no word of JSON Schema" in error.reason:
        return "a misspelt word"
    if "stands beside $ref" in error.reason:
        return "words beside $ref, in a draft where they have no effect"
    if "characters as JSON" in error.reason or "too complex" in error.reason:
        return "its size"
    if "cannot be satisfied" in error.reason:
        return "no answer can satisfy it"
    if word.isalpha() or word.startswith("$"):
        return word
    return error.reason
