"""Remote control: which of Celery's commands a worker answers, and which broadcasts reach it.

Anyone who can write to Redis can broadcast. A worker answers the questions of Flower's pages and ``celery inspect``,
and accepts a shutdown and the cancelling of jobs. It refuses, with a sentence, a command that would change how it
works. A broadcast that is no command is dropped before kombu reads it, as the first error there would end Celery's
loop.
"""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery.worker.control import Panel
from kombu.utils import json

from helix_jobs.broker.messages import is_envelope, is_name

if TYPE_CHECKING:
    from collections.abc import Callable, Container

ANSWERED: Final = frozenset(
    {
        *("ping", "stats", "conf", "registered", "active_queues", "active", "reserved", "scheduled", "revoked"),
        *("enable_events", "heartbeat"),  # without them Flower sees neither tasks nor the living worker
        *("revoke", "terminate", "shutdown"),
    }
)
# Refused commands, and how Helix does the same.
_REMEDIES: Final = {
    **dict.fromkeys(
        ("pool_grow", "pool_shrink", "autoscale"),
        "its slots are fixed when its models are loaded; start it again with another --max-batch-size",
    ),
    **dict.fromkeys(("add_consumer", "cancel_consumer"), "it has one queue; to stop it, send SIGTERM or shutdown"),
    "time_limit": "start it with --job-timeout",
    "pool_restart": "stop it and start it again",
}
_CELERYS: Final = dict(Panel.data)
# Flower's longest command, a revocation, has some hundred.
MAX_BODY_CHARS: Final = 65_536
MAX_TEXT_CHARS: Final = 256
_FIELDS: Final = frozenset({"method", "arguments", "destination", "pattern", "matcher", "reply_to", "ticket"})


def restrict(on_reject: Callable[[str], None]) -> None:
    """Have Celery's panel, in this process, answer the allowed commands and refuse all others.

    Args:
        on_reject: Called, with a few words, for each command that was refused or failed.
    """
    for name, handler in _CELERYS.items():
        if name in ANSWERED:
            Panel.data[name] = partial(_answer, name, handler, on_reject)
        else:
            Panel.data[name] = partial(_refuse, name, on_reject)


def is_command(raw: Any, queue: str, known: Container[str]) -> bool:  # noqa: ANN401  (parsed JSON)
    """Whether a broadcast is a command that kombu can read and answer.

    Args:
        raw: The message.
        queue: The mailbox it came to, ``NODE.NAMESPACE.pidbox``.
        known: The names of commands. Refused ones are among them, as their senders get an answer.
    """
    if not is_envelope(raw) or len(raw["body"]) > MAX_BODY_CHARS:
        return False
    if (raw["content-type"], raw["content-encoding"]) != ("application/json", "utf-8"):
        return False
    clock = raw["headers"].get("clock")
    if not (clock is None or (isinstance(clock, int) and 0 <= clock < 2**53)):
        return False
    try:
        text = raw["body"]
        if raw["properties"].get("body_encoding") == "base64":
            text = base64.b64decode(text, validate=True)
        body = json.loads(text)
    except Exception:  # noqa: BLE001  (kombu's decoder turns marked objects into its own types, and may raise anything)
        return False
    return isinstance(body, dict) and body.keys() <= _FIELDS and _is_readable(body, queue, known)


def _is_readable(body: dict[str, Any], queue: str, known: Container[str]) -> bool:
    arguments, destination, reply_to = body.get("arguments"), body.get("destination"), body.get("reply_to")
    return (
        isinstance(body.get("method"), str)
        and body["method"] in known
        and (arguments is None or isinstance(arguments, dict))
        and (
            destination is None or (isinstance(destination, list) and all(isinstance(one, str) for one in destination))
        )
        and _is_text(body.get("pattern"))
        # A foreign regular expression could keep Celery's loop busy for ever.
        and body.get("matcher") in (None, "glob")
        and _is_text(body.get("ticket"))
        and (not reply_to or _answers_to_its_own(reply_to, queue))
    )


def _answers_to_its_own(reply_to: object, queue: str) -> bool:
    """Whether the answer goes to this installation's exchange for answers, not to a key of the sender's choice."""
    if not isinstance(reply_to, dict) or not is_name(reply_to.get("routing_key")):
        return False
    exchange = reply_to.get("exchange")
    return (
        isinstance(exchange, str)
        and exchange.startswith("reply.")
        and queue.endswith(f".{exchange.removeprefix('reply.')}")
    )


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_text(value: object) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT_CHARS)


def _answer(
    name: str,
    handler: Callable[..., Any],
    on_reject: Callable[[str], None],
    state: object,
    /,  # the sender chooses the arguments' names
    **arguments: object,
) -> Any:  # noqa: ANN401
    """Call Celery's handler; wrong arguments lead to an answer, not to a traceback in the log."""
    try:
        return handler(state, **arguments)
    except Exception as error:  # noqa: BLE001  (the arguments are anybody's)
        on_reject(f"remote control ({name} with arguments it does not take)")
        return {"error": f"{name} failed: {type(error).__name__}"}


def _refuse(name: str, on_reject: Callable[[str], None], state: object, /, **_: object) -> dict[str, str]:  # noqa: ARG001
    on_reject(f"remote control ({name})")
    remedy = _REMEDIES.get(name, f"it answers {', '.join(sorted(ANSWERED))}")
    return {"error": f"a Helix worker does not take {name}: {remedy}"}
