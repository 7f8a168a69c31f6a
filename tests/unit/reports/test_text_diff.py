"""Pieces of two texts: put together they are both texts again, whatever the texts are."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from helix_jobs.reports import text_diff as module
from helix_jobs.reports.text_diff import Piece, PieceKind, around_changes, text_diff

SAME, REMOVED, ADDED = PieceKind.SAME, PieceKind.REMOVED, PieceKind.ADDED
_WORDS = st.lists(st.sampled_from(["a", "b", "die Katze", " ", "\n", ".", "é", "x" * 9]), max_size=12).map("".join)


@given(_WORDS, _WORDS)
@settings(max_examples=60)
def test_the_pieces_are_both_texts(before, after):
    pieces = text_diff(before, after)
    assert "".join(piece.text for piece in pieces if piece.kind is not ADDED) == before
    assert "".join(piece.text for piece in pieces if piece.kind is not REMOVED) == after
    if before == after:
        assert all(piece.kind is SAME for piece in pieces)


def test_words_that_changed_are_told_from_those_that_did_not():
    assert text_diff("The cat sat down.", "The old cat lay down.") == [
        Piece(SAME, "The "),
        Piece(ADDED, "old "),
        Piece(SAME, "cat "),
        Piece(REMOVED, "sat"),
        Piece(ADDED, "lay"),
        Piece(SAME, " down."),
    ]


def test_texts_of_many_words_are_compared_by_lines_and_at_last_as_a_whole(monkeypatch):
    monkeypatch.setattr(module, "_MOST_PARTS", 6)
    old, new = "one two three four\nfive\n", "one 2 three 4\nfive\n"
    assert text_diff(old, new) == [
        Piece(REMOVED, "one two three four\n"),
        Piece(ADDED, "one 2 three 4\n"),
        Piece(SAME, "five\n"),
    ]
    old, new = "".join(f"{i}\n" for i in range(9)), "".join(f"n{i}\n" for i in range(9))
    assert text_diff(old, new) == [Piece(REMOVED, old), Piece(ADDED, new)]


def test_what_both_have_is_cut_to_what_stands_beside_a_change():
    pieces = [Piece(SAME, "a" * 50), Piece(ADDED, "b"), Piece(SAME, "c" * 50), Piece(REMOVED, "d"), Piece(SAME, "e")]
    assert [piece.text for piece in around_changes(pieces, 5)] == ["…aaaaa", "b", "ccccc…ccccc", "d", "e"]
