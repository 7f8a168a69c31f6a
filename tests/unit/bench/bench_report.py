"""The report that ``helix bench --json`` writes: which keys it has, and what each holds."""

from __future__ import annotations

import json

import jsonschema

NUMBER = {"type": "number"}
SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
COUNT = {"type": "integer", "minimum": 0}
PERCENTILES = {
    "oneOf": [
        {"type": "null"},
        {"type": "object", "required": ["p50", "p90", "p99"], "additionalProperties": {"type": "number", "minimum": 0}},
    ]
}


def closed(optional=(), **properties):
    """An object of exactly these keys."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def nullable(schema):
    return {"oneOf": [{"type": "null"}, schema]}


MEASUREMENT = closed(
    seconds=NUMBER,
    requests=COUNT,
    failed=COUNT,
    prompt_tokens=COUNT,
    output_tokens=COUNT,
    output_tokens_per_second=NUMBER,
    prompt_tokens_per_second=NUMBER,
    ttft_from_submission=PERCENTILES,
    ttft_from_admission=PERCENTILES,
    inter_token=PERCENTILES,
    draft_tokens=COUNT,
    acceptance_rate=SHARE,
    forced_tokens=COUNT,
    accepted_forced_tokens=COUNT,
    mean_depth=NUMBER,
    mean_acceptance_length=nullable(NUMBER),
    steps=COUNT,
    mean_batch_size=NUMBER,
    cached_prompt_tokens=COUNT,
    preemptions=COUNT,
    depth_reasons={"type": "object", "additionalProperties": COUNT},
    shares=nullable(closed(**dict.fromkeys(("schedule", "draft", "target", "attention", "verify", "other"), NUMBER))),
    decode_step=nullable(closed(num_sequences=COUNT, num_tokens=COUNT, seconds=NUMBER, count=COUNT)),
    peak_memory_bytes=COUNT,
    peak_device_bytes=nullable(COUNT),
)
CASE_NAME = {
    "mode": {"type": "string"},
    "speculation": {"type": "string"},
    "draft": {"type": "string"},
    "batch_size": COUNT,
    "variant": {"type": "string"},
}
PEER_ROUND = closed(seconds=NUMBER, output_tokens=COUNT, output_tokens_per_second=NUMBER, peak_memory_bytes=COUNT)
COMPARISON = closed(
    **CASE_NAME,
    against={"type": "string"},
    ratio=NUMBER,
    ratios={"type": "array", "items": NUMBER, "minItems": 1},
    equal_outputs=SHARE,
)
SCHEMA = closed(
    schema={"const": "helix-bench/1"},
    command={"type": "string", "pattern": "^helix\\b"},
    started_at={"type": "string", "pattern": "Z$"},
    complete={"type": "boolean"},
    machine=closed(
        cpu={"type": "string"},
        physical_cores=nullable(COUNT),
        logical_cores=nullable(COUNT),
        memory_bytes=COUNT,
        platform={"type": "string"},
        python={"type": "string"},
        helix={"type": "string"},
        torch={"type": "string"},
        transformers={"type": "string"},
        threads=COUNT,
    ),
    device={"type": "string"},
    dtype={"type": "string"},
    kernels={"enum": ["compiled", "torch"]},
    target={"type": "string"},
    drafts={"type": "array", "items": {"type": "string"}},
    workload=closed(
        name={"type": "string"},
        prompts=nullable({"type": "string"}),
        sample=nullable(COUNT),
        seed={"type": "integer"},
        max_tokens=COUNT,
        prompt_tokens=nullable(COUNT),
        ignore_eos={"type": "boolean"},
        forced_greedy={"type": "boolean"},
        repeat=COUNT,
        kv_cache_mb=nullable(COUNT),
        kv_cache_dtype={"enum": ["auto", "int8"]},
    ),
    cases={
        "type": "array",
        "items": closed(
            **CASE_NAME,
            tokens_per_second=nullable(NUMBER),
            floor_share={"type": ["number", "null"]},
            floor_seconds={"type": "array", "items": NUMBER},
            warm_up=nullable(MEASUREMENT),
            rounds={"type": "array", "items": MEASUREMENT},
        ),
    },
    peers={
        "type": "array",
        "items": closed(
            name={"type": "string"},
            batch_size=COUNT,
            variant={"type": "string"},
            version=nullable({"type": "string"}),
            settings={"type": "object"},
            load_seconds=nullable(NUMBER),
            warm_up=nullable(PEER_ROUND),
            rounds={"type": "array", "items": PEER_ROUND},
            error=nullable({"type": "string"}),
            error_tail={"type": "string"},
            tokens_per_second=nullable(NUMBER),
        ),
    },
    against_peers={"type": "array", "items": COMPARISON},
    against_off={"type": "array", "items": COMPARISON},
)


def validate(report):
    jsonschema.validate(report, SCHEMA)


def read(path):
    report = json.loads(path.read_text(encoding="utf-8"))
    validate(report)
    return report
