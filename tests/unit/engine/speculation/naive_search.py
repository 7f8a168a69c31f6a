"""Search without an index: what NgramIndex has to find, by its definition."""

from __future__ import annotations

from helix_jobs.engine.speculation.drafters.ngram_index import MAX_MATCH, MAX_OCCURRENCES, MIN_MATCH


def naive_find(text, context):
    """The definition: among the latest occurrences of the shortest context, those with the longest common end."""
    context = context[-MAX_MATCH:]
    ngram = context[-MIN_MATCH:]
    found = [f for f in range(MIN_MATCH, len(text)) if text[f - MIN_MATCH : f] == ngram][::-1][:MAX_OCCURRENCES]

    def common(follower):
        length = 0
        while length < min(len(context), follower) and text[follower - length - 1] == context[-length - 1]:
            length += 1
        return length

    longest = max(map(common, found), default=0)
    return longest, [f for f in found if common(f) == longest]
