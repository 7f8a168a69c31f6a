"""Grammars: the compiled constraints of a worker, each made once. No torch."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from helix_jobs.engine.grammar.llguidance_grammar import compile_grammar
from helix_jobs.engine.grammar.trial import GrammarTrial
from helix_jobs.engine.matcher import GrammarError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llguidance import LLTokenizer

    from helix_jobs.engine.constraint import Constraint
    from helix_jobs.engine.grammar.vocabulary import TokenTable
    from helix_jobs.engine.matcher import Grammar

logger = logging.getLogger(__name__)

# Constraints kept, those refused included. Trade-off: a batch mostly has one or a few; each takes up to some tens of
# megabytes once masks have taught its lexer.
_KEPT: Final = 64
_UNREADABLE: Final = (
    "the grammar library cannot read this model's tokenizer, so no answer can be held to a form; leave the form out, "
    "or use another model"
)


class Grammars:
    """Compiles constraints for one vocabulary and keeps the latest, refused ones with their error. Thread-safe.

    Nothing is built before the first constraint comes.

    Args:
        describe: Describes the vocabulary; called once.
        kept: Most constraints kept.
    """

    def __init__(self, describe: Callable[[], TokenTable], kept: int = _KEPT) -> None:
        self._describe = describe
        self._kept = kept
        self._compiled: OrderedDict[Constraint, Grammar | GrammarError] = OrderedDict()
        self._lock = threading.Lock()
        # One constraint is compiled at a time: jobs of one batch ask for the same.
        self._turn = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        # The library has refused the vocabulary, and would again.
        self._is_unreadable = False
        self._trial: GrammarTrial | None = None

    def compile(self, constraint: Constraint) -> Grammar:
        """The constraint's grammar. Takes up to some seconds for a new one; not for the engine's thread.

        Raises:
            GrammarError: The constraint cannot be kept, compiling exceeds the limits, or no constraint can be kept with
                this vocabulary.
            EngineError: The process that tries constraints first was ended from outside.
        """
        found = self._look_up(constraint)
        if found is None:
            with self._turn:
                found = self._look_up(constraint)
                if found is None:
                    found = self._make(constraint)
                    self._keep(constraint, found)
        if isinstance(found, GrammarError):
            raise GrammarError(str(found))
        return found

    def close(self) -> None:
        """End the process that tries constraints."""
        if self._trial is not None:
            self._trial.close()

    def _make(self, constraint: Constraint) -> Grammar | GrammarError:
        try:
            tokenizer, trial = self._ready()
            trial.check(constraint)
            return compile_grammar(constraint, tokenizer)
        except GrammarError as error:
            return error

    def _ready(self) -> tuple[LLTokenizer, GrammarTrial]:
        if self._tokenizer is None or self._trial is None:
            if self._is_unreadable:
                raise GrammarError(_UNREADABLE)
            table = self._describe()
            try:
                self._tokenizer = table.build()
            except ValueError as error:
                logger.warning("the grammar library cannot read the model's tokenizer", exc_info=error)
                self._is_unreadable = True
                raise GrammarError(_UNREADABLE) from error
            self._trial = GrammarTrial(table)
        return self._tokenizer, self._trial

    def _look_up(self, constraint: Constraint) -> Grammar | GrammarError | None:
        with self._lock:
            found = self._compiled.get(constraint)
            if found is not None:
                self._compiled.move_to_end(constraint)
            return found

    def _keep(self, constraint: Constraint, found: Grammar | GrammarError) -> None:
        with self._lock:
            self._compiled[constraint] = found
            while len(self._compiled) > self._kept:
                self._compiled.popitem(last=False)
