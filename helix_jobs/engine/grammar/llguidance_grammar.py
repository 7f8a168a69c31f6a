"""The implementation of ``Grammar`` and ``Matcher`` by llguidance (Microsoft, MIT).

It parses with Earley's algorithm over a lexer of derivatives, and computes a mask by walking the vocabulary's prefix
tree. Its errors are states to poll, not exceptions: each call here polls them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llguidance import LLMatcher

from helix_jobs.engine.grammar_text import grammar_limits, grammar_text
from helix_jobs.engine.matcher import GrammarError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from llguidance import LLTokenizer
    from numpy.typing import NDArray

    from helix_jobs.engine.constraint import Constraint, Kind
    from helix_jobs.engine.matcher import Matcher

_SHOWN: Final = 200


def compile_grammar(constraint: Constraint, tokenizer: LLTokenizer) -> LibraryGrammar:
    """Compile a constraint in this process. Takes as long as the constraint wants, see ``GrammarTrial``.

    Raises:
        GrammarError: The library refuses the constraint.
    """
    try:
        text = grammar_text(constraint)
    except ValueError as error:
        raise GrammarError(f"the {constraint.kind} cannot be read ({_first_line(str(error))}); correct it") from error
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=grammar_limits())
    if matcher.is_error():
        raise GrammarError(f"the {constraint.kind} cannot be kept: {_first_line(matcher.get_error())}; simplify it")
    return LibraryGrammar(constraint.kind, matcher, tokenizer)


class LibraryGrammar:
    """A compiled constraint; satisfies ``Grammar``.

    Args:
        kind: The constraint's kind.
        origin: A matcher at the beginning, which is only copied. Copies share its lexer, so that what one request has
            taught it makes the next one faster.
        tokenizer: The vocabulary.
    """

    def __init__(self, kind: Kind, origin: LLMatcher, tokenizer: LLTokenizer) -> None:
        self.kind: Final = kind
        self._origin = origin
        self._tokenizer = tokenizer
        self._condemned = ""
        self.mask_bytes: Final = (tokenizer.vocab_size + 31) // 32 * 4
        self.end_token_ids: Final = frozenset(tokenizer.eos_tokens)

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an output."""
        return LibraryMatcher(self, self._origin.deep_copy())

    def accepts(self, text: str) -> bool:
        """Whether the text is a whole output."""
        matcher = self.matcher()
        ids = self._tokenizer.tokenize_str(text)
        return matcher.advance(ids) == len(ids) and matcher.is_accepting

    def condemn(self, reason: str) -> None:
        """Let all its matchers fail from now on."""
        self._condemned = reason

    def check(self) -> None:
        """Raise the error of a condemned grammar.

        Raises:
            GrammarError: It is condemned.
        """
        if self._condemned:
            raise GrammarError(self._condemned)


class LibraryMatcher:
    """A place in an output; satisfies ``Matcher``.

    Args:
        grammar: Its grammar.
        matcher: The library's, of this object alone.
    """

    def __init__(self, grammar: LibraryGrammar, matcher: LLMatcher) -> None:
        self._grammar = grammar
        self._matcher = matcher

    def advance(self, token_ids: Sequence[int]) -> int:
        """Go on along the tokens, up to the first that may not follow."""
        self._grammar.check()
        ends = self._grammar.end_token_ids
        ids = list(token_ids)
        for place, token_id in enumerate(ids):
            if token_id in ends:
                # The library would take it without counting it, and then go back one token too far.
                ids = ids[:place]
                break
        taken: int = self._matcher.try_consume_tokens(ids) if ids else 0
        self._poll()
        return taken

    def rewind(self, count: int) -> None:
        """Go back ``count`` tokens."""
        self._grammar.check()
        if count:
            self._matcher.rollback(count)
            self._poll()

    def fill_mask(self, mask: NDArray[np.uint8]) -> None:
        """Set the bits of the tokens that may follow."""
        self._grammar.check()
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._poll()

    def allows(self, token_id: int) -> bool:
        """Whether the mask has the token's bit."""
        forced = self.forced()
        if forced:
            return token_id == forced[0]
        if token_id in self._grammar.end_token_ids:
            return False
        taken: int = self._matcher.validate_tokens([token_id])
        self._poll()
        return taken == 1

    def forced(self) -> Sequence[int]:
        """The tokens that must follow."""
        self._grammar.check()
        found: list[int] = self._matcher.compute_ff_tokens()
        self._poll()
        return found

    @property
    def is_accepting(self) -> bool:
        """Whether the prefix is a whole output."""
        return bool(self._matcher.is_accepting())

    @property
    def is_complete(self) -> bool:
        """Whether the prefix is a whole output, and nothing may follow."""
        return bool(self._matcher.is_stopped()) and self.is_accepting

    def _poll(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(
                f"the constraint asks for more than a token may take: {_first_line(self._matcher.get_error())}; "
                "simplify it"
            )


def _first_line(message: str) -> str:
    """The part of the library's message that does not quote the text."""
    return " ".join((message.splitlines() or [""])[0].split())[:_SHOWN]
