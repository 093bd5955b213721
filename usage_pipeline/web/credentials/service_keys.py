"""Service keys: what programs call the API with. Made and rotated by a command, shown once, and
kept as hashes in `$USAGE_HOME/web/keys.json`, which is read again when it changes.

A key is 256 random bits, so that one round of SHA-256 hides it; a password would need more.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Literal

from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.infra.disk import locked, scratch
from usage_pipeline.settings import Settings

PREFIX = "uk_"


class Scope(StrEnum):
    """What a key may do."""

    EVENTS_WRITE = "events:write"
    USAGE_READ = "usage:read"
    PORTAL_WRITE = "portal:write"
    ADMIN_READ = "admin:read"


@dataclass(frozen=True)
class ServiceKey:
    """A key without its secret; moments are ISO 8601 in UTC."""

    key_id: str
    name: str
    scopes: tuple[str, ...]
    sha256: str
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        """What it is at this moment."""
        if self.revoked_at:
            return "revoked"
        over = self.expires_at and datetime.fromisoformat(self.expires_at) <= datetime.now(UTC)
        return "expired" if over else "active"


class ServiceKeys:
    """The keys of one USAGE_HOME."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.web_dir / "keys.json"
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int, int], dict[str, ServiceKey]] | None = None

    def find(self, token: str) -> ServiceKey | None:
        """The key that a caller sent, if it is one and active.

        Raises:
            UsagePipelineError: the file cannot be read.
        """
        key_id, _, secret = token.removeprefix(PREFIX).partition("_")
        key = self.listed().get(key_id)
        same = hmac.compare_digest(_hashed(secret), key.sha256 if key else _hashed(""))
        return key if key and same and key.state == "active" else None

    def listed(self) -> dict[str, ServiceKey]:
        """All, by id, the oldest first.

        Raises:
            UsagePipelineError: the file cannot be read.
        """
        try:
            there = self._path.stat()
            which = (there.st_ino, there.st_mtime_ns, there.st_size)
            with self._lock:
                if self._read is None or self._read[0] != which:
                    rows = json.loads(self._path.read_text())["keys"]
                    keys = [ServiceKey(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
                    self._read = which, {key.key_id: key for key in keys}
                return self._read[1]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise UsagePipelineError(
                f"The service keys in {self._path} cannot be read ({type(error).__name__})",
                "Restore the file, or remove it and make keys with `usage-pipeline keys create`",
            ) from None

    def create(
        self, name: str, scopes: Collection[str], expires_in: timedelta | None
    ) -> tuple[ServiceKey, str]:
        """A new key, and what its caller sends, which is kept nowhere."""
        with self._changing() as keys:
            return self._add(keys, name, scopes, expires_in)

    def rotate(self, key_id: str, overlap: timedelta) -> tuple[ServiceKey, str]:
        """A new key like another one, which ends after the overlap, or earlier if it would anyway.

        Raises:
            UsagePipelineError: there is no such key, or it is not active.
        """
        with self._changing() as keys:
            old = self._active(keys, key_id)
            lifetime = None
            if old.expires_at:
                end = datetime.fromisoformat(old.expires_at)
                lifetime = end - datetime.fromisoformat(old.created_at)
            new = self._add(keys, old.name, old.scopes, lifetime)
            until = (datetime.now(UTC) + overlap).isoformat(timespec="seconds")
            keys[key_id] = replace(old, expires_at=min(until, old.expires_at or until))
            return new

    def revoke(self, key_id: str) -> ServiceKey:
        """End a key at once.

        Raises:
            UsagePipelineError: there is no such key, or it is not active.
        """
        with self._changing() as keys:
            keys[key_id] = replace(self._active(keys, key_id), revoked_at=_now())
            return keys[key_id]

    def _active(self, keys: dict[str, ServiceKey], key_id: str) -> ServiceKey:
        key = keys.get(key_id)
        if key is None or key.state != "active":
            raise UsagePipelineError(
                f"There is no active key {key_id}", "List them with `usage-pipeline keys list`"
            )
        return key

    def _add(
        self,
        keys: dict[str, ServiceKey],
        name: str,
        scopes: Collection[str],
        expires_in: timedelta | None,
    ) -> tuple[ServiceKey, str]:
        secret = secrets.token_urlsafe(32)
        expires = datetime.now(UTC) + expires_in if expires_in else None
        key = ServiceKey(
            key_id=secrets.token_hex(6),
            name=name,
            scopes=tuple(sorted(scopes)),
            sha256=_hashed(secret),
            created_at=_now(),
            expires_at=expires.isoformat(timespec="seconds") if expires else None,
        )
        keys[key.key_id] = key
        return key, f"{PREFIX}{key.key_id}_{secret}"

    @contextmanager
    def _changing(self) -> Iterator[dict[str, ServiceKey]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self._path.parent), scratch(self._settings) as work:
            keys = dict(self.listed())
            yield keys
            staged = work / self._path.name
            staged.touch(0o600)
            staged.write_text(
                json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=1)
            )
            staged.replace(self._path)


def _hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
