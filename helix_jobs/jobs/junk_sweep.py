"""Dropping junk from the queue's lists in blocks: popped one by one, it would hold up the jobs behind it.

A message that is next in line and none of ours is dropped by the server, in one script, only while what is next is
still what was looked at. So no message of a job can be dropped, whatever other workers take and put meanwhile.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BLOCK_MESSAGES: Final = 500
BLOCK_BYTES: Final = 1_000_000
# Ours have some 600.
MAX_MESSAGE_BYTES: Final = 8_192

# The last messages of a list, the next one first; of one that is too long its digest in the place of its text.
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
# ARGV: digests of messages, the next one first. Drops from the end while they fit.
_DROP: Final = """
for i, digest in ipairs(ARGV) do
    local text = redis.call('LINDEX', KEYS[1], -1)
    if not text or redis.sha1hex(text) ~= digest then return i - 1 end
    redis.call('RPOP', KEYS[1])
end
return #ARGV
"""


def sweep(client: Any, keys: Sequence[str], is_ours: Callable[[bytes], bool]) -> int:  # noqa: ANN401  (redis-py's)
    """Drop the junk that is next in line in each of these lists, at most a block of each; returns how much it was.

    Args:
        client: A Redis client.
        keys: Lists, popped from the right.
        is_ours: Whether a message is one of ours; one that is longer than any of ours is not asked about.
    """
    dropped = 0
    for key in keys:
        found = client.eval(_LOOK, 1, key, BLOCK_MESSAGES, BLOCK_BYTES, MAX_MESSAGE_BYTES)
        junk = []
        for text, digest in found:
            if not digest and is_ours(text):
                break
            junk.append(digest or hashlib.sha1(text, usedforsecurity=False).hexdigest())
        if junk:
            dropped += int(client.eval(_DROP, 1, key, *junk))
    return dropped
