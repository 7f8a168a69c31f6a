"""Messenger: mail and chat through apprise, which knows how each service is reached."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from helix_jobs.errors import ConfigurationError, NotDeliveredError

if TYPE_CHECKING:
    from helix_jobs.notify.event import Event


class Messenger:
    """A channel of one or more services. Their addresses hold passwords, so no message has them.

    Args:
        urls: apprise's addresses, with spaces between several.

    Raises:
        ConfigurationError: apprise is not installed, or does not know an address.
    """

    name: Final = "apprise"

    def __init__(self, urls: str) -> None:
        try:
            import apprise
        except ImportError as error:
            raise ConfigurationError(
                'HELIX_NOTIFY_APPRISE needs apprise, which is not installed; run pip install -e ".[apprise]" in the '
                "clone, or pip install apprise"
            ) from error
        # It logs what it sends, and where to.
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        self._services: Any = apprise.Apprise()
        for number, url in enumerate(urls.split(), start=1):
            if not self._services.add(url):
                raise ConfigurationError(
                    f"address {number} of HELIX_NOTIFY_APPRISE is none that apprise knows; "
                    "https://github.com/caronc/apprise has the form of each service's"
                )

    def send(self, event: Event) -> str:
        """Tell every service; returns how many, in words.

        Raises:
            NotDeliveredError: One of them did not take it.
        """
        if not self._services.notify(title=event.title(), body=event.text()):
            raise NotDeliveredError("a service of HELIX_NOTIFY_APPRISE did not take it")
        return f"{len(self._services)} told"
