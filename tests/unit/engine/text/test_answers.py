"""An output in its parts: thinking, answer and calls, for markers in special tokens, in others and in ordinary ones."""

from __future__ import annotations

import dataclasses

import pytest

from helix_jobs.engine.chat_options import ReasoningOptions, ToolUse
from helix_jobs.engine.partial_output import PartialText
from helix_jobs.engine.request import EncodedRequest, FinishReason, Request
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.schedule.block_pool import BlockPool
from helix_jobs.engine.schedule.block_table import BlockTable
from helix_jobs.engine.schedule.sequence import Sequence
from helix_jobs.engine.text.chat_forms import chat_forms
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.engine.text.encoded_prompt import Thinking
from helix_jobs.engine.text.final_text import result_of
from helix_jobs.errors import InvalidRequestError
from tests.unit.engine.reasoning_models import one_token
from tests.unit.engine.text.call_models import HARMONY, byte_tokenizer
from tests.unit.engine.text.chat_templates import (
    BRACKETS,
    CHANNEL_CALLS,
    CHANNELS,
    MISTRAL_NEMO,
    OPENED,
    QWEN3,
    THOUGHT_CHANNEL,
)
from tests.unit.engine.text.served_text import OUTPUTS, QUESTION, Served, asked_to_think
from tests.unit.engine.text.small_tokenizers import sentence_pieces

TOOLS = ToolUse(tools=({"type": "function", "function": {"name": "wait"}},))
CALL = '<tool_call>\n{"name": "wait", "arguments": {"s": "é"}}\n</tool_call>'


@pytest.fixture(scope="module")
def served():
    """Models by the form in which they think."""
    made = {
        "tokens": Served(QWEN3, ["<think>", "</think>", "<tool_call>", "</tool_call>"], ["<|im_start|>", "<|im_end|>"]),
        "letters": Served(QWEN3, (), ["<|im_start|>", "<|im_end|>"]),
        "opened": Served(OPENED, ["<think>", "</think>"]),
        "special": Served(BRACKETS, (), ["[THINK]", "[/THINK]", "[INST]", "[/INST]"]),
        "channels": Served(CHANNELS, (), HARMONY),
        "channel calls": Served(CHANNEL_CALLS, (), HARMONY),
        "thought channel": Served(THOUGHT_CHANNEL, (), ["<|channel>", "<channel|>", "<|turn>", "<turn|>"]),
        "nemo": Served(MISTRAL_NEMO, (), ["[TOOL_CALLS]", "[INST]", "[/INST]"]),
    }
    yield made
    for one in made.values():
        one.codec.close()


@pytest.mark.parametrize("kind", OUTPUTS)
def test_thinking_stands_apart_from_the_answer(served, kind):
    result = served[kind].answer(OUTPUTS[kind], **asked_to_think(kind))
    assert (result.output_text, result.reasoning_text) == ("Elbe é", "hm é")
    assert result.finish_reason is FinishReason.STOP
    assert result.output_token_ids == tuple(served[kind].ids(OUTPUTS[kind]))
    assert len("hm é".encode()) <= result.reasoning_tokens <= len("\nhm é\n".encode())


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_answer_is_shown_while_it_grows(served, kind):
    served[kind].answer(OUTPUTS[kind] + " und mehr", **asked_to_think(kind))
    assert served[kind].shown == PartialText("Elbe é und mehr", "hm é")
    served[kind].answer(OUTPUTS[kind] + " und ", stop=(" und mehr", "x"), **asked_to_think(kind))
    assert served[kind].shown == PartialText("Elbe é", "hm é"), "what may begin a stop string waits"
    whole = OUTPUTS[kind]
    served[kind].answer(whole[: whole.index("hm") + 2], **asked_to_think(kind))
    assert served[kind].shown == PartialText("", "hm")


def test_nothing_is_shown_that_may_be_a_call(served):
    served["tokens"].answer("Let me wait." + CALL, tools=TOOLS)
    assert served["tokens"].shown == PartialText()


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_thinking_that_is_cut_leaves_no_answer(served, kind):
    whole = OUTPUTS[kind]
    result = served[kind].answer(whole[: whole.index("hm") + 4], reason=FinishReason.LENGTH, **asked_to_think(kind))
    assert (result.output_text, result.reasoning_text) == ("", "hm é")
    assert result.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("kind", sorted(OUTPUTS.keys() - {"opened"}))
def test_an_answer_without_thinking_is_all_answer(served, kind):
    result = served[kind].answer("Elbe </thin", **asked_to_think(kind))
    assert (result.output_text, result.reasoning_text, result.reasoning_tokens) == ("Elbe </thin", None, 0)


def test_a_channel_of_the_answer_alone_is_no_thinking(served):
    result = served["channels"].answer("<|channel|>final<|message|>Elbe")
    assert (result.output_text, result.reasoning_text, result.reasoning_tokens) == ("Elbe", None, 0)


def test_several_thoughts_are_one_text(served):
    second = "<|end|><|start|>assistant<|channel|>analysis<|message|>well"
    whole = OUTPUTS["channels"].replace("hm é", f"hm{second}")
    assert served["channels"].answer(whole).reasoning_text == "hm\nwell"


def test_a_prompt_that_closes_the_thinking_leaves_it_all_to_the_answer(served):
    result = served["tokens"].answer("</think> is a tag", reasoning=ReasoningOptions(enabled=False))
    assert (result.output_text, result.reasoning_text, result.reasoning_tokens) == ("</think> is a tag", None, None)


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("stop", ["hm", "be", "b", "é", "Elbe"])
def test_stop_strings_count_in_the_answer(served, kind, stop):
    result = served[kind].answer(OUTPUTS[kind], stop=(stop,), **asked_to_think(kind))
    answer = "Elbe é"
    assert result.reasoning_text == "hm é"
    assert result.output_text == (answer[: answer.index(stop)] if stop in answer else answer)


def test_ends_of_messages_inside_a_turn_are_known(served):
    channels = served["channels"]
    assert channels.forms.turn_ends == {channels.tokenizer.convert_tokens_to_ids("<|call|>")}
    assert channels.forms.within_turn == {channels.tokenizer.convert_tokens_to_ids("<|end|>")}
    assert not served["tokens"].forms.within_turn


@pytest.mark.parametrize("kind", ["tokens", "letters"])
def test_calls_stand_apart_from_words_and_thinking(served, kind):
    result = served[kind].answer(f"<think>\nhm\n</think>\n\nLook:\n{CALL}", tools=TOOLS)
    assert (result.output_text, result.reasoning_text) == ("Look:", "hm")
    assert result.finish_reason is FinishReason.TOOL_CALLS
    (call,) = result.tool_calls
    assert call["function"] == {"name": "wait", "arguments": '{"s": "é"}'}
    assert call["type"] == "function"
    again = served[kind].answer(f"<think>\nhm\n</think>\n\nLook:\n{CALL}", tools=TOOLS)
    assert again.tool_calls == result.tool_calls, "ids are the same when a job is run again"


def test_calls_in_special_tokens_are_read(served):
    result = served["nemo"].answer('[TOOL_CALLS][{"name": "wait", "arguments": {}}, {"name": "wait"}]', tools=TOOLS)
    assert result.output_text == ""
    assert [call["function"]["arguments"] for call in result.tool_calls] == ["{}", "{}"]
    assert len({call["id"] for call in result.tool_calls}) == 2


@pytest.mark.parametrize(
    ("text", "tools", "reason"),
    [
        (CALL, None, FinishReason.STOP),
        (CALL[:-20], TOOLS, FinishReason.STOP),
        (CALL[:-20], TOOLS, FinishReason.LENGTH),
        (CALL.replace("wait", "run"), TOOLS, FinishReason.STOP),
    ],
)
def test_what_is_no_whole_call_stays_text_and_ends_as_it_did(served, text, tools, reason):
    result = served["tokens"].answer(text, tools=tools, reason=reason)
    assert (result.output_text, result.tool_calls, result.finish_reason) == (text, None, reason)


def test_a_whole_call_in_an_answer_that_was_cut_is_kept(served):
    result = served["tokens"].answer(f"{CALL}\n", tools=TOOLS, reason=FinishReason.LENGTH)
    assert len(result.tool_calls) == 1
    assert result.finish_reason is FinishReason.LENGTH


def test_without_parallel_calling_the_first_call_counts(served):
    one = dataclasses.replace(TOOLS, is_parallel=False)
    assert len(served["tokens"].answer(f"{CALL}\n{CALL}", tools=TOOLS).tool_calls) == 2
    assert len(served["tokens"].answer(f"{CALL}\n{CALL}", tools=one).tool_calls) == 1


def test_a_call_that_is_demanded_becomes_a_constraint(served):
    forced = served["tokens"].encode(tools=dataclasses.replace(TOOLS, is_required=True))
    assert forced.grammar is not None
    assert forced.grammar.accepts(CALL)
    assert not forced.grammar.accepts("Look:")
    assert served["tokens"].encode(tools=TOOLS).grammar is None


THOUGHT = "<|channel|>analysis<|message|>hm \u00e9<|end|><|start|>assistant"
CHANNEL_CALL = '<|channel|>commentary to=functions.wait <|constrain|>json<|message|>{"s": "\u00e9"}'
BY_ROLE = ' to=functions.wait<|channel|>commentary json<|message|>{"s":"\u00e9"}'
PREAMBLE = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "words", "thinking"),
    [
        (THOUGHT + CHANNEL_CALL, "", "hm \u00e9"),
        (THOUGHT + BY_ROLE, "", "hm \u00e9"),
        (CHANNEL_CALL, "", None),
        (BY_ROLE, "", None),
        (THOUGHT + PREAMBLE + CHANNEL_CALL, "I look.", "hm \u00e9"),
        (PREAMBLE + THOUGHT + CHANNEL_CALL, "I look.", "hm \u00e9"),
        (THOUGHT + THOUGHT + CHANNEL_CALL, "", "hm \u00e9\nhm \u00e9"),
        (THOUGHT + "<|channel|>commentary to=functions.wait json<|message|>{}", "", "hm \u00e9"),
        (THOUGHT + "<|channel|>commentary to=functions.wait<|message|>{}", "", "hm \u00e9"),
        (THOUGHT + "<|channel|>analysis to=functions.wait<|message|>{}", "", "hm \u00e9"),
    ],
)
def test_a_call_in_a_message_of_its_own_is_read(served, text, words, thinking):
    result = served["channel calls"].answer(text, tools=TOOLS)
    assert (result.output_text, result.reasoning_text) == (words, thinking)
    assert result.finish_reason is FinishReason.TOOL_CALLS
    (call,) = result.tool_calls
    assert call["function"]["name"] == "wait"
    assert call["function"]["arguments"] in ('{"s": "\u00e9"}', "{}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (CHANNEL_CALL.replace("wait", "run"), None),
        (CHANNEL_CALL[:-2], None),
        (CHANNEL_CALL + " and", None),
        (BY_ROLE.replace("wait", "run"), None),
        ("<|channel|>commentary to=python<|message|>{}", None),
        ("<|channel|>final<|message|>Elbe <|constrain|> to=functions.wait", "Elbe <|constrain|> to=functions.wait"),
        ("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>Elbe",
         "I look.\nElbe"),
    ],
)  # fmt: skip
def test_a_message_that_is_no_whole_call_is_shown_with_its_header(served, text, shown):
    result = served["channel calls"].answer(THOUGHT + text, tools=TOOLS)
    assert (result.output_text, result.tool_calls) == (shown or text, None)
    assert (result.reasoning_text, result.finish_reason) == ("hm \u00e9", FinishReason.STOP)


def test_a_message_without_tools_is_shown_as_it_is(served):
    for text in (CHANNEL_CALL, BY_ROLE):
        assert served["channel calls"].answer(THOUGHT + text).output_text == text


@pytest.mark.parametrize("cut", ["<|channel|>", "<|channel|>fin", THOUGHT[: THOUGHT.index("hm")]])
def test_a_header_that_is_cut_is_no_text(served, cut):
    result = served["channel calls"].answer(cut, reason=FinishReason.LENGTH, tools=TOOLS)
    assert (result.output_text, result.reasoning_text, result.tool_calls) == ("", None, None)
    behind = served["channel calls"].answer(THOUGHT + "<|channel|>fin", reason=FinishReason.LENGTH)
    assert (behind.output_text, behind.reasoning_text) == ("", "hm \u00e9")


def test_a_mark_that_a_model_spells_out_splits_nothing(served):
    """It is told by its token alone."""
    one = served["channel calls"]
    request = one.encode(tools=TOOLS)
    spelt = [token for character in "a<|end|>b" for token in one.ids(character)]
    sequence = Sequence(request, BlockTable(BlockPool(2, 4)), frozenset(), 100_000)
    sequence.commit([*one.ids("<|channel|>final<|message|>"), *spelt], 0.0)
    sequence.finish(FinishReason.STOP)
    assert result_of(sequence, one.codec, one.forms).output_text == "a<|end|>b"


def test_stop_strings_do_not_count_in_headers(served):
    for stop in ("final", "comm", "assistant"):
        result = served["channel calls"].answer(f"{THOUGHT}<|channel|>final<|message|>Elbe", stop=(stop,))
        assert (result.output_text, result.finish_reason) == ("Elbe", FinishReason.STOP)
    result = served["channel calls"].answer(THOUGHT + CHANNEL_CALL, stop=("commentary",), tools=TOOLS)
    assert len(result.tool_calls) == 1


def test_a_continued_text_may_be_followed_by_a_call(served):
    continued = {"messages": (*QUESTION, {"role": "assistant", "content": "The river"}), "continue_final_message": True}
    one = served["channel calls"]
    assert one.codec.decode_all(one.encode(**continued).prompt_token_ids).endswith("final<|message|>The river")
    assert one.answer(" Elbe", **continued).output_text == " Elbe"
    result = one.answer(f" Elbe<|end|><|start|>assistant{CHANNEL_CALL}", tools=TOOLS, **continued)
    assert (result.output_text, len(result.tool_calls)) == (" Elbe", 1)
    with pytest.raises(InvalidRequestError, match="tool_choice: this model writes a call in a message of its own"):
        one.encode(tools=dataclasses.replace(TOOLS, is_required=True), **continued)


def test_a_prompt_may_open_the_channel_of_thinking(served):
    opened = CHANNEL_CALLS.replace("'<|start|>assistant' }}", "'<|start|>assistant<|channel|>analysis<|message|>' }}")
    one = Served(opened, (), HARMONY)
    try:
        assert one.encode().reasoning.starts_open
        result = one.answer(f"hm<|end|><|start|>assistant{CHANNEL_CALL}", tools=TOOLS)
        assert (result.output_text, result.reasoning_text, result.reasoning_tokens) == ("", "hm", 2)
        assert len(result.tool_calls) == 1
        cut = one.answer("hm", reason=FinishReason.LENGTH)
        assert (cut.output_text, cut.reasoning_text) == ("", "hm")
        forced = one.encode(tools=dataclasses.replace(TOOLS, is_required=True)).grammar
        for text in ("hm", ""):
            assert accepts(forced, one.ids(f"{text}<|end|><|start|>assistant{CHANNEL_CALL}")), text
        assert accepts(forced, one.ids(f"hm<|end|><|start|>assistant{THOUGHT}{CHANNEL_CALL}"))
        assert not accepts(forced, one.ids(CHANNEL_CALL))
    finally:
        one.codec.close()


def test_a_demanded_call_in_a_message_has_its_thinking_in_the_grammar(served):
    one = served["channel calls"]
    forced = one.encode(tools=dataclasses.replace(TOOLS, is_required=True))
    assert forced.grammar is not None
    assert forced.grammar_has_thinking
    assert not one.encode(tools=TOOLS).grammar_has_thinking
    for text in (CHANNEL_CALL, THOUGHT + CHANNEL_CALL, THOUGHT + THOUGHT + CHANNEL_CALL):
        assert accepts(forced.grammar, one.ids(text)), text
    for text in (
        "", "Elbe", THOUGHT, f"{THOUGHT}<|channel|>final<|message|>Elbe", "<|channel|>analysis<|message|>hm",
        THOUGHT + CHANNEL_CALL.replace("wait", "run"), THOUGHT + CHANNEL_CALL[:-1], PREAMBLE + CHANNEL_CALL,
        CHANNEL_CALL + "<|end|>", '{"s": "\u00e9"}',
    ):  # fmt: skip
        assert not accepts(forced.grammar, one.ids(text)), text


def accepts(grammar, token_ids):
    """Whether the tokens are all that the grammar wants."""
    matcher = grammar.matcher()
    return matcher.advance(token_ids) == len(token_ids) and matcher.is_accepting


def test_a_closing_is_chosen_by_what_may_follow(served):
    one = served["channel calls"]
    text, either, call = (
        one.encode(tools=tools).reasoning.closings for tools in (None, TOOLS, dataclasses.replace(TOOLS, only="wait"))
    )
    assert [one.codec.decode_all(ids) for ids in either] == [
        "<|end|><|start|>assistant<|channel|>final<|message|>",
        "<|end|><|start|>assistant<|channel|>commentary to=functions",
    ]
    assert (text, call) == (either[:1], either[1:])


def test_an_answer_that_goes_on_with_a_message_goes_on_with_its_text(served):
    continued = {"messages": (*QUESTION, {"role": "assistant", "content": "The river"}), "continue_final_message": True}
    result = served["tokens"].answer(" Elbe", **continued)
    assert result.output_text == " Elbe"
    assert served["tokens"].encode(**continued).reasoning is None
    assert (
        served["tokens"].codec.decode_all(served["tokens"].encode(**continued).prompt_token_ids).endswith("The river")
    )


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("nemo", {"reasoning": ReasoningOptions(max_tokens=3)}, "max_reasoning_tokens: .*marks no thinking"),
        ("opened", {"reasoning": ReasoningOptions(effort="low")}, "reasoning_effort: .*no effect"),
        ("opened", {"tools": TOOLS}, "tools: .*does not show them"),
    ],
)
def test_what_the_model_cannot_do_is_an_invalid_request(served, kind, fields, said):
    with pytest.raises(InvalidRequestError, match=said):
        served[kind].encode(**fields)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("tokens", "messages, thinking, tools"),
        ("opened", "messages, thinking, no tools"),
        ("nemo", "messages, no thinking, tools"),
    ],
)
def test_what_a_model_can_do_is_told_in_words(served, kind, words):
    assert served[kind].forms.in_words == words


def test_a_model_without_template_takes_prompts_only():
    assert chat_forms(byte_tokenizer(None), None).in_words == "prompts only (the model has no chat template)"


def test_a_budget_reaches_the_request_with_the_form_of_its_prompt(served):
    asked = served["opened"].encode(reasoning=ReasoningOptions(max_tokens=3))
    assert (asked.max_reasoning_tokens, asked.reasoning.starts_open) == (3, True)
    assert (
        served["opened"]
        .codec.encode(Request(request_id="a", seed=1, messages=tuple(QUESTION), sampling_params=SamplingParams()))
        .thinking
        is Thinking.OPEN
    )


@pytest.mark.parametrize("form", [None, one_token()], ids=["no thinking", "may think"])
def test_a_continued_answer_keeps_the_space_that_it_begins_with(form):
    """SentencePiece takes a text's first space away, which is right for a whole text alone."""
    tokenizer = sentence_pieces()
    codec = TextCodec(tokenizer, len(tokenizer))
    prompt, output = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("the quick", "brown fox"))
    for continues, text in ((True, " brown fox"), (False, "brown fox")):
        request = EncodedRequest(
            request_id="a",
            prompt_token_ids=tuple(prompt),
            sampling_params=SamplingParams(),
            seed=1,
            is_chat=True,
            continues=continues,
            reasoning=form,
        )
        sequence = Sequence(request, BlockTable(BlockPool(2, 4)), frozenset(), 100_000)
        sequence.commit(output, 0.0)
        sequence.finish(FinishReason.STOP)
        assert result_of(sequence, codec).output_text == text
