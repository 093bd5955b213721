"""Whether a request comes from this machine: what needs no sign-in is for nobody else."""

from __future__ import annotations

from ipaddress import ip_address

from starlette.requests import Request

from usage_pipeline.settings import LOOPBACK

_OF_PROXIES = {
    "cf-connecting-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
}


def is_this_machine(request: Request) -> bool:
    """A proxy's visitors come from elsewhere, and a foreign name may resolve to 127.0.0.1."""
    client = request.client.host if request.client else ""
    try:
        loopback = ip_address(client).is_loopback
    except ValueError:
        return False
    here = loopback and request.url.hostname in LOOPBACK
    return here and not _OF_PROXIES & set(request.headers)
