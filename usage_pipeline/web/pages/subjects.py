"""Whose usage a page is about, and of when: what an address names, and its reader may see."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import get_args
from uuid import UUID

from usage_pipeline.web.figures import Period, State, Subject, Window
from usage_pipeline.web.identity import MANAGERS, Identity, Membership
from usage_pipeline.web.pages.base import not_there
from usage_pipeline.web.state import Web

_WINDOWS: tuple[Window, ...] = get_args(Window)


@dataclass(frozen=True)
class Choice:
    """One of the subjects that somebody may look at; `key` names it in an address."""

    key: str
    name: str
    subject: Subject
    role: str = ""


def choices(identity: Identity, memberships: Sequence[Membership]) -> list[Choice]:
    """Personal use, all of it, and each organisation that the user is of; of who came by a link
    for one organisation, that one."""
    user = identity.user_id
    orgs = [
        Choice(str(each.org_id), each.name, Subject("org", org_id=each.org_id), each.role)
        for each in memberships
        if identity.org_id in (None, each.org_id)
    ]
    if identity.org_id:
        return orgs
    personal = Choice("personal", "Personal", Subject("personal", user_id=user))
    return [personal, Choice("all", "Everything", Subject("all", user_id=user)), *orgs]


def chosen(choices: Sequence[Choice], key: str | None) -> Choice:
    """The choice that an address names, else the first.

    Raises:
        HTTPException: there is none of that name, or it is not theirs to see.
    """
    found = next((choice for choice in choices if key in (None, choice.key)), None)
    if found is None:
        raise not_there()
    return found


def managed(web: Web, identity: Identity, org_id: UUID) -> str:
    """The name of an organisation that somebody may manage: its owners and admins, and admins of
    the platform.

    Raises:
        HTTPException: it is not there, or not theirs.
    """
    if identity.user_id and identity.org_id in (None, org_id):
        for each in web.members.orgs_of(identity.user_id):
            if each.org_id == org_id and each.role in MANAGERS:
                return each.name
    name = web.members.names_of([org_id]).get(org_id) if identity.is_admin else None
    if name is None:
        raise not_there()
    return name


def period_of(state: State, key: str) -> Period:
    """The window, or the month, that an address names.

    Raises:
        HTTPException: there is none, or no day of it is published.
    """
    for window in _WINDOWS:
        if key == window:
            return state.window(window)
    return state.month(month_of(state, key))


def month_of(state: State, key: str | None) -> date:
    """A published month as `YYYY-MM`, the newest one for None.

    Raises:
        HTTPException: no day of it is published.
    """
    if key is None and state.months:
        return state.months[0]
    if key and re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", key):
        month = date(int(key[:4]), int(key[5:]), 1) if key > "0001" else date.min
        if month in state.months:
            return month
    raise not_there()
