"""The built-in prompts: deterministic text of any length, and tasks in the mixture people submit in bulk.

Prompts are the same on every machine: a prompt is a function of its index.
"""

from __future__ import annotations

import random
from typing import Final

TOPICS: Final = (
    "bees",
    "the tides",
    "bread",
    "the printing press",
    "volcanoes",
    "bicycles",
    "tax law",
    "jazz",
    "vaccines",
    "glass",
    "chess",
    "the Silk Road",
    "batteries",
    "coral reefs",
    "medieval castles",
    "remote work",
)
_TASKS: Final = (
    "What should everybody know about {topic}? Answer in three sentences.",
    "Write a short, friendly email that invites a colleague to a talk about {topic}.",
    "List five surprising facts about {topic}.",
    "Explain {topic} to a ten-year-old.",
    "Summarise the following report in two sentences.\n\n{short_text}",
    "Write a Python function with a docstring that stores notes about {topic} in a dictionary and returns it.",
    "Is there a good reason not to care about {topic}? Argue both sides briefly.",
    "Correct the spelling of this sentence: 'I beleive that {topic} is importent for evrybody.'",
    "Name the main idea and three keywords of the text about {topic}.\n\n{long_text}",
    "Translate into French: 'We read about {topic} all morning and forgot the time.'",
    "Write a limerick about {topic}.",
    "A shop sells books about {topic} at 12 euros each and gives 15 % off for ten or more. What do 14 books cost?",
)
NUM_TASKS: Final = len(_TASKS) * len(TOPICS)
_SUBJECTS: Final = ("The committee", "A visitor", "The old engineer", "Our neighbour", "The northern team", "A student")
_VERBS: Final = ("measured", "described", "repaired", "questioned", "photographed", "compared", "ignored", "sold")
_OBJECTS: Final = ("the harbour", "two bridges", "a green boat", "the weekly figures", "an empty house", "the river")
_TAILS: Final = (
    "before the rain began",
    "in the second week of May",
    "although nobody had asked for it",
    "and wrote a letter about it",
    "with great patience",
    "while the others waited",
    "for the third time that year",
)
_NAMES: Final = ("Ada", "Boris", "Chen", "Dalia", "Emre", "Fatou", "Greta", "Hugo", "Ines", "Jonas")
_CITIES: Final = ("Lisbon", "Oslo", "Nairobi", "Lima", "Kyoto", "Graz", "Tallinn", "Perth")
_ITEMS: Final = ("desk lamp", "garden hose", "kettle", "office chair", "bicycle pump", "winter coat", "tea set")


def text(seed: int, num_words: int) -> str:
    """Plain English sentences of exactly ``num_words`` words; the first words of a longer text are the shorter one."""
    pick = random.Random(seed)  # noqa: S311  (reproducible, not secret)
    words: list[str] = []
    while len(words) < num_words:
        parts = (_SUBJECTS, _VERBS, _OBJECTS, _TAILS)
        number = pick.randrange(10, 9999)
        sentence = " ".join(pick.choice(part) for part in parts)
        words += f"{sentence} (note {number}).".split()
    return " ".join(words[:num_words])


def task(index: int) -> str:
    """One task of a mixed bulk file; the first ``NUM_TASKS`` are distinct, then they repeat."""
    # The step through the topics differs from the number of tasks, so every pair comes up before one returns.
    topic = TOPICS[(index + index // len(_TASKS)) % len(TOPICS)]
    return _TASKS[index % len(_TASKS)].format(
        topic=topic, short_text=text(index % NUM_TASKS, 60), long_text=text(index % NUM_TASKS, 240)
    )


def extraction(index: int) -> str:
    """A task whose answer repeats much of the prompt: records to JSON, a form letter, or a text with one change."""
    pick = random.Random(index)  # noqa: S311  (as above)
    records = [
        f"{pick.choice(_NAMES)} from {pick.choice(_CITIES)} ordered {pick.randrange(1, 9)} x {pick.choice(_ITEMS)} "
        f"on 2026-{pick.randrange(1, 13):02d}-{pick.randrange(1, 29):02d}."
        for _ in range(6)
    ]
    kind = index % 3
    if kind == 0:
        return (
            "Extract every order as one JSON object a line with the keys name, city, quantity, item and date. Give "
            "only the JSON lines.\n\n" + "\n".join(records)
        )
    if kind == 1:
        return (
            "Write this letter once for each order, with name, item and date filled in, and nothing else: 'Dear "
            "<name>, thank you for your order of <item>, placed on <date>. It leaves our warehouse within two working "
            "days. Kind regards, the order desk.'\n\n" + "\n".join(records)
        )
    return f"Repeat the following text word for word, but write 'the tower' for 'the river'.\n\n{text(index, 90)}"


def owner(index: int) -> str:
    """A person and a subject; the first 80 differ."""
    return f"{_NAMES[index % len(_NAMES)]}, who keeps the notes on {TOPICS[index % len(TOPICS)]}"


def conversation(index: int) -> tuple[dict[str, str], ...]:
    """Chat messages: a system prompt and one to three questions, the earlier ones answered."""
    topic = TOPICS[index % len(TOPICS)]
    turns = (
        (f"Tell me something about {topic}.", f"Gladly. {text(index, 40)}"),
        ("And why does that matter?", f"For several reasons. {text(index + 1, 50)}"),
        (f"Thank you. Now give me one practical tip that has to do with {topic}.", ""),
    )
    messages = [{"role": "system", "content": "You are a helpful, concise assistant."}]
    last = index % len(turns)
    for number, (question, answer) in enumerate(turns[: last + 1]):
        messages.append({"role": "user", "content": question})
        if number < last:
            messages.append({"role": "assistant", "content": answer})
    return tuple(messages)
