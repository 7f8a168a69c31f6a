"""A model's text side without a model: what it reads of outputs that a test writes, also while they grow."""

from __future__ import annotations

import dataclasses

from helix_jobs.engine.chat_options import ReasoningOptions
from helix_jobs.engine.grammar.grammars import Grammars
from helix_jobs.engine.grammar.vocabulary import TokenTable
from helix_jobs.engine.partial_output import PartialText
from helix_jobs.engine.request import EncodedRequest, FinishReason, Request
from helix_jobs.engine.request_encoding import RequestEncoding
from helix_jobs.engine.sampling_params import SamplingParams
from helix_jobs.engine.schedule.block_pool import BlockPool
from helix_jobs.engine.schedule.block_table import BlockTable
from helix_jobs.engine.schedule.sequence import Sequence
from helix_jobs.engine.text.chat_forms import chat_forms
from helix_jobs.engine.text.codec import TextCodec
from helix_jobs.engine.text.final_text import apply_stop_strings, result_of
from helix_jobs.engine.text.partial_text import UnfinishedOutput
from helix_jobs.engine.text.prompt_encoder import PromptEncoder
from helix_jobs.engine.text.stop_strings import StopStringWatch
from tests.unit.engine.text.bounded_prompts import SHORT
from tests.unit.engine.text.call_models import byte_tokenizer

QUESTION = [{"role": "user", "content": "Name a river"}]


class Served:
    """A model's text side: its tokenizer, its template, and what was found in them."""

    def __init__(self, template, tokens=(), special=()):
        self.tokenizer = byte_tokenizer(template, tokens, special)
        self.prompts = PromptEncoder(self.tokenizer, SHORT)
        self.found = self.prompts.probe()
        self.forms = chat_forms(self.tokenizer, self.found)
        ends = frozenset({self.tokenizer.eos_token_id})
        self.grammars = Grammars(lambda: TokenTable.of(self.tokenizer, len(self.tokenizer), ends))
        self.codec = TextCodec(self.tokenizer, len(self.tokenizer), self.prompts)

    def encode(self, **fields) -> EncodedRequest:
        asked = {"messages": tuple(QUESTION), "sampling_params": SamplingParams(max_tokens=9000), **fields}
        encoding = RequestEncoding(
            self.codec, 100_000, frozenset(), frozenset(), grammars=self.grammars, chat_forms=self.forms
        )
        return encoding.encode(Request(request_id="a", seed=1, **asked))

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def answer(self, text, *, stop=(), reason=FinishReason.STOP, **fields):
        """The result of an output with this text, written token by token."""
        request = self.encode(**fields)
        sequence = Sequence(request, BlockTable(BlockPool(2, 4)), frozenset(), 100_000)
        watch = (
            StopStringWatch(self.codec, stop, self.codec.context(request.prompt_token_ids), is_chat=True)
            if stop
            else None
        )
        params = dataclasses.replace(request.sampling_params, stop=tuple(stop))
        streamed, shown = dataclasses.replace(request, sampling_params=params), PartialText()
        for token_id in self.ids(text):
            sequence.commit([token_id], 0.0)
            if watch is not None and apply_stop_strings(sequence, watch, 1):
                break
            if sequence.finish_reason is not None:
                break
            now = UnfinishedOutput(streamed, sequence.output_token_ids, self.codec, self.forms).read()
            assert now.text.startswith(shown.text), "what was shown stays"
            assert now.reasoning.startswith(shown.reasoning), "what was shown stays"
            shown = now
        if sequence.finish_reason is None:
            sequence.finish(reason)
        result = result_of(sequence, self.codec, self.forms)
        assert result.output_text.startswith(shown.text), "what was shown is the answer's beginning"
        assert (result.reasoning_text or "").startswith(shown.reasoning), "what was shown is the thinking's beginning"
        self.shown = shown
        return result


OUTPUTS = {
    "tokens": "<think>\nhm é\n</think>\n\nElbe é",
    "letters": "\n<think>\nhm é\n</think>\n\nElbe é",
    "opened": "hm é\n</think>\n\nElbe é",
    "special": "[THINK]hm é[/THINK]Elbe é",
    "channels": "<|channel|>analysis<|message|>hm é<|end|><|start|>assistant<|channel|>final<|message|>Elbe é",
    "thought channel": "<|channel>thought\nhm é\n<channel|>Elbe é",
}


def asked_to_think(kind):
    return {"reasoning": ReasoningOptions(enabled=True)} if kind == "thought channel" else {}
