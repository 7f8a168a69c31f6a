"""Extraction: short reports to be turned into records, with the schema of a record. Made up here, all of them."""

from __future__ import annotations

import json
from typing import Any, Final

from helix_jobs.engine.constraint import Constraint

_PEOPLE: Final = ("Ada Holm", "Bo Lindqvist", "Carla Nunes", "Dev Rao", "Emre Kaya", "Fay Osei", "Goran Babic")
_GOODS: Final = ("a blue kettle", "two desk lamps", "a garden chair", "three oak shelves", "a wool blanket")
_PLACES: Final = ("Bergen", "Porto", "Pune", "Izmir", "Accra", "Split", "Leeds", "Turku", "Cork", "Nantes", "Graz")
_TROUBLES: Final = (
    "the box came with a broken corner and the lid no longer closes",
    "nothing has come yet although the shop said Tuesday",
    "the colour is not the one in the picture, and there is a scratch on the side",
    "everything came as promised, only a day early",
)

RECORD: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "customer_name": {"type": "string", "maxLength": 60},
        "delivery_city": {"type": "string", "maxLength": 40},
        "ordered_item": {"type": "string", "maxLength": 60},
        "price_in_euro": {"type": "number", "minimum": 0},
        "delivery_status": {"enum": ["delivered", "damaged", "missing", "wrong item"]},
        "wants_refund": {"type": "boolean"},
        "summary": {"type": "string", "maxLength": 160},
    },
    "required": [
        *("customer_name", "delivery_city", "ordered_item", "price_in_euro", "delivery_status", "wants_refund"),
        "summary",
    ],
    "additionalProperties": False,
}
ONE_RECORD: Final = Constraint("json_schema", json.dumps(RECORD))
# More records than any answer has room for: answers of this form go on to their limit of tokens.
ENDLESS_RECORDS: Final = Constraint("json_schema", json.dumps({"type": "array", "items": RECORD, "minItems": 100_000}))


def extraction_messages(number: int) -> tuple[dict[str, str], ...]:
    """The messages of one report; each number has its own."""
    person, place = _PEOPLE[number % len(_PEOPLE)], _PLACES[number % len(_PLACES)]
    goods, trouble = _GOODS[number % len(_GOODS)], _TROUBLES[number % len(_TROUBLES)]
    wish = "and wants the money back" if number % 3 == 0 else "and is content"
    report = (
        f"Call {number + 1}: {person} from {place} ordered {goods} for {12 + 7 * number % 90} euro. "
        f"{person.split()[0]} says that {trouble}, {wish}."
    )
    fields = ", ".join(RECORD["properties"])
    task = f"Write the report as one JSON object with the fields {fields}. Write nothing else.\n\n{report}"
    return ({"role": "user", "content": task},)
