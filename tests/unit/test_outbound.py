"""Which addresses may be connected to, and how long a connection may be used."""

from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network

import pytest

from usage_pipeline.infra.outbound import NotAllowed, addresses, is_public, time_limit

PUBLIC = ("8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.128.0.1", "223.255.255.255")
PUBLIC_V6 = ("2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888")
# What a server must not be made to talk to, spelled by whoever writes a URL.
OURS = (
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",  # metadata at Alibaba
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's
    "169.254.169.254",  # metadata at most clouds
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",  # metadata at Oracle
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
)
OURS_V6 = (
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",  # metadata at Amazon
    "fe80::1",
    "fec0::1",
    "ff02::1",
)


@pytest.mark.parametrize("address", [*PUBLIC, *PUBLIC_V6])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", [*OURS, *OURS_V6])
def test_addresses_of_networks_are_not(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "0"],
)
def test_a_spelling_of_loopback_is_no_way_around(host: str) -> None:
    with pytest.raises(NotAllowed):
        addresses(host, 80)


def test_a_network_of_ones_own_can_be_allowed() -> None:
    assert addresses("127.0.0.1", 80, [ip_network("127.0.0.0/8")]) == ["127.0.0.1"]
    with pytest.raises(NotAllowed):
        addresses("127.0.0.1", 80, [ip_network("10.0.0.0/8"), ip_network("::/0")])


def test_of_several_addresses_only_public_ones_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))
        for address in ("10.0.0.1", "8.8.8.8", "127.0.0.1", "1.1.1.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    assert addresses("hooks.example.com", 443) == ["8.8.8.8", "1.1.1.1"]


def test_a_connection_is_cut_however_busy_it_is() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(60)
        with time_limit(ours, 0.05) as was_cut:
            received = b"."
            theirs.sendall(b"." * 100)
            while received:  # ends only because it is cut
                received = ours.recv(1)
        assert was_cut.is_set()


def test_a_connection_that_is_done_is_left_alone() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with time_limit(ours, 60) as was_cut:
            pass
        theirs.sendall(b"more")
        assert ours.recv(4) == b"more"
        assert not was_cut.is_set()
