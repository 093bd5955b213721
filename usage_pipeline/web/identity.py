"""Who asks, and what they may see. Whether somebody is of an organisation is asked of the source
each time: a former member sees nothing from the moment on in which the row is gone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy

from usage_pipeline.app_db.session import source_query
from usage_pipeline.infra.database_urls import app_database_url
from usage_pipeline.infra.postgres_pool import Pool
from usage_pipeline.settings import Settings

Role = Literal["owner", "admin", "member"]
MANAGERS: tuple[Role, ...] = ("owner", "admin")
_NAME = "coalesce(nullif(trim(orgs.name), ''), cast(orgs.id as text))"


@dataclass(frozen=True)
class Identity:
    """Who asks.

    Attributes:
        user_id: None for a service key, which asks for others, and for people of the company.
        scopes: of a service key; a person has none and needs none.
        org_id: the only organisation that a portal link shows; None does not narrow.
        via: how they signed in.
        key_id: of a service key.
    """

    user_id: UUID | None
    is_admin: bool = False
    scopes: frozenset[str] = frozenset()
    org_id: UUID | None = None
    via: Literal["development", "token", "portal", "oidc", "key"] = "token"
    key_id: str | None = None

    @property
    def may_change(self) -> bool:
        """Whether they may do more than look; a portal link shows, and no more."""
        return self.via != "portal"


@dataclass(frozen=True)
class Membership:
    """An organisation that a user is of; the name is the id where it has none."""

    org_id: UUID
    name: str
    role: Role


@dataclass(frozen=True)
class Person:
    """Who is of an organisation, by id, and since when."""

    user_id: UUID
    role: Role
    since: datetime


class Members:
    """The source's accounts, asked in short read-only transactions.

    Ids are compared as literals, which Postgres takes for the type of their column, text or UUID.
    """

    def __init__(self, settings: Settings) -> None:
        self._pool = Pool(app_database_url(settings), "USAGE_APP_DATABASE_URL")

    @property
    def in_use(self) -> int:
        """Connections to the source that somebody has at this moment."""
        return self._pool.in_use

    def close(self) -> None:
        """Close the connections to the source."""
        self._pool.close()

    def orgs_of(self, user_id: UUID) -> list[Membership]:
        """Organisations of a user that are not deleted, by name."""
        query = f"""
            select members.org_id, {_NAME} as name, members.role
            from ({source_query("org_members")}) as members
            inner join ({source_query("orgs")}) as orgs on orgs.id = members.org_id
            where members.user_id = :user_id and orgs.deleted_at is null
            order by name, members.org_id
        """
        return [
            Membership(UUID(str(org)), name, role)
            for org, name, role in self._ask(query, user_id=str(user_id))
        ]

    def shown_to(self, identity: Identity) -> list[Membership]:
        """The organisations whose usage somebody may look at as one of their members."""
        if identity.user_id is None:
            return []
        return [
            membership
            for membership in self.orgs_of(identity.user_id)
            if identity.org_id in (None, membership.org_id)
        ]

    def role(self, identity: Identity, org_id: UUID) -> Role | None:
        """What somebody is in an organisation; None when nothing, or when a link hides it."""
        return next((m.role for m in self.shown_to(identity) if m.org_id == org_id), None)

    def of(self, org_id: UUID) -> list[Person]:
        """Who is of an organisation, the first ones first."""
        query = f"""
            select user_id, role, created_at from ({source_query("org_members")}) as members
            where org_id = :org_id order by created_at, user_id
        """
        return [
            Person(UUID(str(user)), role, since)
            for user, role, since in self._ask(query, org_id=str(org_id))
        ]

    def names_of(self, org_ids: Collection[UUID]) -> dict[UUID, str]:
        """Names of organisations that there are, deleted ones too; the id where it has none."""
        query = f"""
            select id, {_NAME} from ({source_query("orgs")}) as orgs
            where id in ({", ".join(f"'{org}'" for org in org_ids)})
        """
        found = self._ask(query) if org_ids else []
        return {UUID(str(org)): name for org, name in found}

    def is_active(self, user_id: UUID) -> bool:
        """Whether the application has the user, not deleted."""
        query = f"""
            select 1 from ({source_query("users")}) as users
            where id = :user_id and deleted_at is null
        """
        return bool(self._ask(query, user_id=str(user_id)))

    def ask_for_nothing(self) -> None:
        """Whether the source answers.

        Raises:
            UsagePipelineError: it does not.
        """
        self._ask("select 1")

    def _ask(self, query: str, **parameters: str) -> list[tuple[Any, ...]]:
        with self._pool.connect() as connection:
            rows = connection.execute(sqlalchemy.text(query), parameters)
            return [tuple(row) for row in rows]
