"""Texts of the tiny models' alphabet, as token ids."""

from __future__ import annotations

from tests.unit.engine.tiny_models import ALPHABET


def encode(text):
    return [ALPHABET.index(character) + 2 for character in text]
