"""`keys`: what programs call the API with."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from usage_pipeline.cli.options import valid_settings
from usage_pipeline.cli.show import out
from usage_pipeline.web.credentials.service_keys import Scope, ServiceKey, ServiceKeys

KeyId = Annotated[str, typer.Argument(metavar="KEY", help="Its id, as listed.")]


def create(
    name: Annotated[str, typer.Argument(help="Whose it is; for you to know it by.")],
    scope: Annotated[list[Scope], typer.Option(help="What it may do; several times for several.")],
    days: Annotated[
        int | None, typer.Option(help="Days until it ends; default never.", min=1, max=3650)
    ] = None,
) -> None:
    """Make a key for a program, and show it, this once.

    Example: `usage-pipeline keys create shop-backend --scope events:write --scope usage:read`
    """
    keys = ServiceKeys(valid_settings())
    _show(*keys.create(name, set(scope), timedelta(days=days) if days else None))


def list_keys() -> None:
    """Show the keys, without their secrets.

    Example: `usage-pipeline keys list`
    """
    for key in ServiceKeys(valid_settings()).listed().values():
        end = f", until {key.expires_at}" if key.expires_at and not key.revoked_at else ""
        out.print(
            f"{key.key_id} {key.state} {key.name}: {', '.join(key.scopes)}; "
            f"made {key.created_at}{end}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def rotate(
    key: KeyId,
    overlap_hours: Annotated[
        int, typer.Option(help="Hours for which the old one still works.", min=0, max=720)
    ] = 24,
) -> None:
    """Make a key in the place of another.

    The old one works on for a while. Name, scopes and lifetime stay.

    Example: `usage-pipeline keys rotate 3f9a0c1b2d4e --overlap-hours 24`
    """
    _show(*ServiceKeys(valid_settings()).rotate(key, timedelta(hours=overlap_hours)))


def revoke(key: KeyId) -> None:
    """End a key at once.

    Example: `usage-pipeline keys revoke 3f9a0c1b2d4e`
    """
    revoked = ServiceKeys(valid_settings()).revoke(key)
    out.print(f"Key {revoked.key_id} ({revoked.name}) is revoked.", markup=False)


def _show(key: ServiceKey, token: str) -> None:
    out.print(f"Key {key.key_id}, shown this once:", markup=False)
    out.print(token, soft_wrap=True, highlight=False, markup=False)
