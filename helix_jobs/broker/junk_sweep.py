"""Drops junk from the queue's lists in blocks: popped one by one, it would hold up the jobs behind it.

One script on the server drops the foreign messages next in line, and only while they are still the ones that were read.
So no job's message can be dropped, whatever other workers take and put meanwhile.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

BLOCK_MESSAGES: Final = 500
BLOCK_BYTES: Final = 1_000_000
# Helix's messages have some 600.
MAX_MESSAGE_BYTES: Final = 8_192

# Reads the last messages of a list, the next one first; for an overlong message, its digest instead of its text.
_LOOK: Final = """
local found, total = {}, 0
for i = 1, tonumber(ARGV[1]) do
    local text = redis.call('LINDEX', KEYS[1], -i)
    if not text or total > tonumber(ARGV[2]) then break end
    total = total + #text
    if #text > tonumber(ARGV[3]) then
        found[i] = {'', redis.sha1hex(text)}
    else
        found[i] = {text, ''}
    end
end
return found
"""
# ARGV: digests of messages, the next one first. Drops from the end while the digests match; the first messages may have
# been popped.
_DROP: Final = """
local dropped = 0
local text = redis.call('LINDEX', KEYS[1], -1)
for _, digest in ipairs(ARGV) do
    if not text then break end
    if redis.sha1hex(text) == digest then
        redis.call('RPOP', KEYS[1])
        dropped = dropped + 1
        text = redis.call('LINDEX', KEYS[1], -1)
    elseif dropped > 0 then
        break
    end
end
return dropped
"""


def sweep(
    client: Any,  # noqa: ANN401  (redis-py's)
    keys: Sequence[str],
    are_ours: Callable[[Sequence[bytes]], Iterable[bool]],
) -> int:
    """Drop the junk next in line in each of these lists, at most a block of each; returns how many messages.

    Args:
        client: A Redis client.
        keys: Lists, popped from the right.
        are_ours: For each message of a block, whether to keep it; read only as far as needed. An empty text stands for
            a message longer than any of Helix's, which is not kept.
    """
    dropped = 0
    for key in keys:
        found = client.eval(_LOOK, 1, key, BLOCK_MESSAGES, BLOCK_BYTES, MAX_MESSAGE_BYTES)
        junk = []
        for (text, digest), ours in zip(found, are_ours([text for text, _ in found]), strict=True):
            if ours and not digest:
                break
            junk.append(digest or hashlib.sha1(text, usedforsecurity=False).hexdigest())
        if junk:
            dropped += int(client.eval(_DROP, 1, key, *junk))
    return dropped
