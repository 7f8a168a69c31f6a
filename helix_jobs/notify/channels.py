"""The channels that the settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from helix_jobs.errors import ConfigurationError
from helix_jobs.notify.command import Command
from helix_jobs.notify.messenger import messengers
from helix_jobs.notify.webhook import Webhook

if TYPE_CHECKING:
    from helix_jobs.notify.event import Event
    from helix_jobs.notify_settings import NotifySettings


class Channel(Protocol):
    """A way to tell somebody of an event."""

    @property
    def name(self) -> str:
        """What it is called in the database and in the log."""

    def send(self, event: Event, /) -> str:
        """Tell; returns what came of it, in words.

        Raises:
            HelixError: It was not told.
        """


def channels_of(settings: NotifySettings) -> tuple[Channel, ...]:
    """The channels; none if no setting asks for one.

    Raises:
        ConfigurationError: A setting is missing or wrong.
    """
    found: list[Channel] = []
    if settings.webhook_url is not None:
        if settings.webhook_secret is None:
            raise ConfigurationError(
                "HELIX_WEBHOOK_URL is set without HELIX_WEBHOOK_SECRET, which signs what is sent; "
                "`helix notify secret` makes one"
            )
        allow_private = settings.webhook_allow_private > 0
        found.append(Webhook(settings.webhook_url, settings.webhook_secret, allow_private=allow_private))
    if settings.notify_command is not None:
        found.append(Command(settings.notify_command))
    if settings.notify_apprise is not None:
        found += messengers(settings.notify_apprise)
    return tuple(found)
