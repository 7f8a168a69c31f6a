"""Which addresses a webhook may go to.

A name is resolved once, every address that it has is looked at, and the connection goes to one of these, not to the
name: who owns the name cannot answer otherwise the second time (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from helix_jobs.errors import ConfigurationError, NotDeliveredError

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Translators of addresses between IPv6 and IPv4 (RFC 6052, RFC 8215), and the old IPv4-compatible form.
_HOLD_IPV4: Final = tuple(ipaddress.IPv6Network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96"))
_IPV4_BITS: Final = 0xFFFF_FFFF


def reachable_addresses(host: str, port: int, *, allow_private: bool) -> tuple[str, ...]:
    """The addresses that a connection to ``host`` may go to, the best first.

    Args:
        host: A name or an address.
        port: The port.
        allow_private: Take addresses of this machine and of its networks, too.

    Raises:
        ConfigurationError: The name has an address that is not everybody's.
        NotDeliveredError: The name has no address now.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name"
        raise NotDeliveredError(f"the host {host} has no address ({reason})") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not allow_private and not all(is_public(address) for address in addresses):
        raise ConfigurationError(
            f"the host {host} is on this machine or in a network that is not the internet; if the webhook is to go "
            "there, set HELIX_WEBHOOK_ALLOW_PRIVATE=1"
        )
    return tuple(dict.fromkeys(addresses))


def is_public(address: str) -> bool:
    """Whether an address is one of the whole internet: not private, loopback, link-local, multicast or reserved."""
    ip: _Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.is_global and not ip.is_multicast and all(map(_is_public_ip, _ipv4_within(ip)))
    return _is_public_ip(ip)


def _is_public_ip(ip: _Address) -> bool:
    return ip.is_global and not (ip.is_multicast or ip.is_reserved)


def _ipv4_within(ip: ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses to which packets for an IPv6 address may be passed on."""
    within = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if any(ip in network for network in _HOLD_IPV4):
        within.append(ipaddress.IPv4Address(int(ip) & _IPV4_BITS))
    return [found for found in within if found is not None]
