"""The bytes of single tokens are those of the text, and options are cut as they would stand in it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from helix_jobs.engine.request import Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.score_choices import ScoreChoices
from helix_jobs.errors import InvalidRequestError
from tests.unit.engine.text.small_tokenizers import (
    EMOJI,
    KINDS,
    byte_level,
    chat_tokenizer,
    codec,
    ids,
    sentence_pieces,
)

TEXT = f"the quick text hello{EMOJI} world"

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_all_tokens_together_are_the_text(kind: str) -> None:
    tok = KINDS[kind]()
    made = codec(tok)
    texts = [made.token_text(token_id) for token_id in ids(tok, TEXT)]
    joined = b"".join(text.data for text in texts).decode()
    assert joined == (TEXT if kind == "byte level" else f" {TEXT}")
    assert not any(text.is_special for text in texts)
    assert any("\ufffd" in text.text for text in texts), "some token is a part of a character"


def test_a_special_token_has_its_name_and_a_letter_is_no_space() -> None:
    tok = sentence_pieces()
    made = codec(tok)
    end = made.token_text(tok.eos_token_id)
    assert (end.data, end.is_special) == (b"</s>", True)
    # Without a space's letter in the decoder, the letter is itself; as a byte, it is a byte.
    space = tok.convert_tokens_to_ids("<0xE2>")
    assert made.token_text(space).data == b"\xe2"
    assert codec(byte_level()).token_text(0).is_special


# Options


def options_of(tok: PreTrainedTokenizerFast, options: tuple[str, ...], **question: object) -> list[list[int]]:
    asked = ScoreChoices(options=options)
    request = Request(request_id="a", sampling_params=SamplingParams(), seed=1, score_choices=asked, **question)  # type: ignore[arg-type]
    made = codec(tok)
    with closing(made):
        return [list(found) for found in made.encode_options(request)]


def test_an_option_is_cut_as_it_would_stand_behind_the_prompt() -> None:
    for tok in (byte_level(), sentence_pieces()):
        prompt, options = "the quick brown", (" fox", " dog jumps", "😀")
        whole = [tok(prompt + option)["input_ids"] for option in options]
        before = tok(prompt)["input_ids"]
        found = options_of(tok, options, prompt=prompt)
        assert [before + option for option in found] == whole


def test_an_option_that_would_change_the_prompts_tokens_is_cut_apart() -> None:
    tok = byte_level()
    prompt, option = "the quick brow", "n fox"
    before = tok(prompt)["input_ids"]
    assert tok(prompt + option)["input_ids"][: len(before)] != before, "the control: the word goes across"
    assert options_of(tok, (option,), prompt=prompt) == [tok(option)["input_ids"]]


def test_options_of_a_chat_continue_the_generation_prompt() -> None:
    tok = chat_tokenizer()
    messages = ({"role": "user", "content": "x"},)
    rendered = "u.x!a."
    whole = tok(rendered + "ab", add_special_tokens=False)["input_ids"]
    found = options_of(tok, ("ab", "b"), messages=messages)
    assert found[0] == whole[len(tok(rendered, add_special_tokens=False)["input_ids"]) :]
    assert len(found) == 2


def test_token_ids_have_no_text_that_an_option_could_continue() -> None:
    with pytest.raises(InvalidRequestError, match="token ids"):
        options_of(byte_level(), ("a",), prompt_token_ids=(5,))
