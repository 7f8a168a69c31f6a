"""Messenger: mail and chat through apprise, which knows how each service is reached."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from helix_jobs.errors import ConfigurationError, NotDeliveredError

if TYPE_CHECKING:
    from helix_jobs.notify.event import Event


class Messenger:
    """A channel: one service. Its address holds a password, so no message has it.

    Args:
        url: apprise's address of it.
        number: Which one it is of the setting's addresses, from 1.

    Raises:
        ConfigurationError: apprise is not installed, or does not know the address.
    """

    def __init__(self, url: str, number: int = 1) -> None:
        try:
            import apprise
        except ImportError as error:
            raise ConfigurationError(
                'HELIX_NOTIFY_APPRISE needs apprise, which is not installed; run pip install -e ".[apprise]" in the '
                "clone, or pip install apprise"
            ) from error
        # It logs what it sends, and where to.
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        self._number = number
        self._service: Any = apprise.Apprise()
        if not self._service.add(url):
            raise ConfigurationError(
                f"address {number} of HELIX_NOTIFY_APPRISE is none that apprise knows; "
                "https://github.com/caronc/apprise has the form of each service's"
            )

    @property
    def name(self) -> str:
        """What it is called in the database and in the log."""
        return "apprise" if self._number == 1 else f"apprise {self._number}"

    def send(self, event: Event) -> str:
        """Tell the service; returns that it was told, in words.

        Raises:
            NotDeliveredError: It did not take it.
        """
        if not self._service.notify(title=event.title(), body=event.text()):
            raise NotDeliveredError(f"address {self._number} of HELIX_NOTIFY_APPRISE did not take it")
        return f"{len(self._service)} told"


def messengers(urls: str) -> list[Messenger]:
    """A channel for each address, with spaces between them: who has taken an event does not get it once more.

    Raises:
        ConfigurationError: As for each.
    """
    return [Messenger(url, number) for number, url in enumerate(urls.split(), start=1)]
