"""JSON values that nobody would write: any at all, and objects with the fields of a request."""

from __future__ import annotations

from hypothesis import strategies as st

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.characters(codec=None)),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
field_names = st.sampled_from(
    ["prompt", "messages", "custom_id", "priority", "metadata", "seed", "stop", "temperature", "max_tokens", "top_k",
     "stop_token_ids", "method", "url", "body", "n", "model", "role", "content", "max_completion_tokens", "logit_bias",
     "min_tokens", "min_new_tokens", "bad_words", "allowed_token_ids", "truncate_prompt", "truncate_prompt_tokens",
     "include_stop_str_in_output", "no_stop_trim", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "choices",
     "score_by", "tools", "tool_choice", "tool_calls", "tool_call_id", "function", "arguments", "reasoning_effort",
     "enable_thinking", "max_reasoning_tokens", "continue_final_message",
     "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
     "type", "json_schema", "schema", "properties", "items", "$ref", "enum", "pattern", "whitespace", "constraint"]
)  # fmt: skip
objects = st.recursive(
    st.dictionaries(field_names, json_values | st.sampled_from(["POST", "/v1/completions", "/v1/chat/completions"])),
    lambda inner: st.dictionaries(field_names, inner | st.lists(inner, max_size=2) | json_values),
    max_leaves=6,
)
