"""Damage tiny model files at random and load them; arguments: FOLDER FIRST-SEED COUNT.

Whatever is wrong with a file, loading it succeeds or says so in a ModelError. Ends with 1 at the first case that does
neither; the line before the traceback names its seed. Memory is limited, so that a length taken on trust fails, too.
"""

# ruff: noqa: T201  (its lines are read by the test that starts it, and by whoever looks for the seed)
from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from helix_jobs.errors import ModelError
from tests.unit.engine.model_files import load, save_checkpoint, write_gguf
from tests.unit.engine.tiny_models import tiny_model

MEMORY = 8 << 30  # address space; torch and transformers alone take some
LENGTHS = (0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**62, 2**64 - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 10**9, 10**12, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "llama", "gpt2", [], {}, [[]], {"a": 1}, [10**9], ["x", None], {"rope_type": "linear", "factor": 0}),
    *({"rope_type": "yarn"}, {"rope_type": "llama3", "factor": "x"}, {"rope_type": "longrope", "factor": 1.0}),
)
SAMPLES = ("llama", "qwen2", "gpt2", "gpt_neox", "phi3.gguf", "llama.gguf", "gpt2.gguf")


def make_samples(folder: Path) -> None:
    for sample in SAMPLES:
        architecture, _, is_gguf = sample.partition(".")
        if is_gguf:
            write_gguf(folder / sample, architecture)
        else:
            overrides = {"head_dim": None} if architecture == "gpt_neox" else {}
            save_checkpoint(folder / sample, tiny_model(architecture, **overrides))


def damage(path: Path, dice: random.Random) -> None:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        file = dice.choice(files)
        if file.suffix == ".json" and dice.random() < 0.8:
            damage_json(file, dice)
        else:
            damage_bytes(file, dice)


def damage_json(file: Path, dice: random.Random) -> None:
    try:
        document = json.loads(file.read_text())
    except ValueError:
        return
    place: Any = document
    while isinstance(place, dict | list) and place:
        key = dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and dice.random() < 0.7:
            place = inner
            continue
        if dice.random() < 0.2:
            del place[key]
        else:
            place[key] = dice.choice(VALUES)
        break
    file.write_text(json.dumps(document))


def damage_bytes(file: Path, dice: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if not content:
        return
    # Mostly in the header, where lengths and names are.
    place = dice.randrange(min(len(content), dice.choice((32, 1000, 10_000, len(content)))))
    kind = dice.randrange(5)
    if kind == 0:
        content[place] ^= 1 << dice.randrange(8)
    elif kind == 1:
        width = dice.choice((4, 8))
        content[place : place + width] = (dice.choice(LENGTHS) % 2 ** (8 * width)).to_bytes(width, "little")
    elif kind == 2:
        del content[place:]
    elif kind == 3:
        del content[place : place + dice.randrange(1, 40)]
    else:
        content[place:place] = dice.randbytes(dice.randrange(1, 40))
    file.write_bytes(content)


def run(folder: Path, first: int, count: int) -> None:
    make_samples(folder)
    loaded = 0
    for seed in range(first, first + count):
        dice = random.Random(seed)
        sample = folder / dice.choice(SAMPLES)
        victim = folder / f"victim{sample.suffix}"
        if sample.is_dir():
            shutil.copytree(sample, victim)
        else:
            shutil.copyfile(sample, victim)
        damage(victim, dice)
        print(f"seed {seed}: {sample.name}", flush=True)
        try:
            load(victim, dtype="float32")
            loaded += 1
        except ModelError as error:
            print(f"  {type(error).__name__}: {error!s:.300}")
        shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    print(f"{count} files: {loaded} loaded, the others refused")


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
