"""Connections to hosts that somebody else named: to public addresses only, and never for ever."""

from __future__ import annotations

import socket
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

ADDRESSES_TRIED = 3
# Spelled out, since what Python's `is_global` says of some of them changed between its versions.
_NOT_PUBLIC: tuple[Network, ...] = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # of carriers, and some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # what Azure's machines are served from
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",
        "2001::/23",  # Teredo, which holds an IPv4 address, and other protocols
        "2001:db8::/32",
        "2002::/16",  # 6to4, which holds one too
        "3fff::/20",
    )
)
# All else of IPv6 is local, multicast, or holds an IPv4 address: mapped, compatible, NAT64.
_UNICAST_V6 = IPv6Network("2000::/3")


class NotAllowed(Exception):
    """A host without an address that may be connected to."""


def is_public(address: Address) -> bool:
    """Whether an address is one of the Internet, and of no network of ours or our provider's."""
    if isinstance(address, IPv6Address) and address not in _UNICAST_V6:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def addresses(host: str, port: int, allowed: Collection[Network] = ()) -> list[str]:
    """The addresses of a host that may be connected to, best first. To be used as they are: the
    name may resolve otherwise the next time.

    Args:
        host: a name, or an address in any of its spellings.
        allowed: networks that may be connected to although they are not public.

    Raises:
        NotAllowed: it has addresses, but none of them may be.
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    resolved = dict.fromkeys(str(where[0]) for *_, where in found)
    usable = [a for a in resolved if _may_be_used(ip_address(a), allowed)]
    if not usable:
        raise NotAllowed
    return usable[:ADDRESSES_TRIED]


def _may_be_used(address: Address, allowed: Collection[Network]) -> bool:
    return is_public(address) or any(address in network for network in allowed)


@contextmanager
def time_limit(connected: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Cut a connection that is still in use after so many seconds, however busy it is: a timeout of
    the socket begins anew with each byte. The event tells that it was cut."""
    was_cut = threading.Event()

    def cut() -> None:
        was_cut.set()
        with suppress(OSError):
            # Below TLS, whose own goodbye would wait for the other side.
            socket.socket.shutdown(connected, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield was_cut
    finally:
        timer.cancel()
