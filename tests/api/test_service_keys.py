"""Service keys: what is kept of them, and for how long they work."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta

import pytest
from conftest import SettingsFactory
from typer.testing import CliRunner

from usage_pipeline.cli.main import app
from usage_pipeline.errors import UsagePipelineError
from usage_pipeline.settings import Settings
from usage_pipeline.web.credentials.service_keys import ServiceKeys


@pytest.fixture
def settings(make_settings: SettingsFactory) -> Settings:
    return make_settings()


def test_a_key_is_kept_as_a_hash_for_its_owner_alone(settings: Settings) -> None:
    key, token = ServiceKeys(settings).create("shop", ["usage:read"], None)
    path = settings.web_dir / "keys.json"
    prefix, key_id, secret = token.split("_", 2)
    assert (prefix, key_id, len(secret)) == ("uk", key.key_id, 43)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert secret not in text
    assert json.loads(text)["keys"][0]["sha256"] == hashlib.sha256(secret.encode()).hexdigest()


def test_only_the_very_key_is_found(settings: Settings) -> None:
    keys = ServiceKeys(settings)
    assert keys.find("uk_abc_def") is None
    key, token = keys.create("shop", ["usage:read"], None)
    _, other = keys.create("other", ["usage:read"], None)
    assert keys.find(token) == key
    secret = other.split("_", 2)[2]
    for wrong in (
        token[:-1],
        token + "x",
        f"uk_{key.key_id}_{secret}",
        f"uk_{key.key_id}_",
        "uk_",
        f"uk__{secret}",
        "",
        f"uk_{key.key_id}_é",
    ):
        assert keys.find(wrong) is None, wrong


def test_what_another_process_changes_counts_at_once(settings: Settings) -> None:
    web, command = ServiceKeys(settings), ServiceKeys(settings)
    key, token = command.create("shop", ["usage:read"], None)
    assert web.find(token)
    command.revoke(key.key_id)
    assert web.find(token) is None


def test_rotation_overlaps(settings: Settings) -> None:
    keys = ServiceKeys(settings)
    old, old_token = keys.create("shop", ["usage:read", "events:write"], timedelta(days=90))
    new, new_token = keys.rotate(old.key_id, timedelta(hours=1))
    assert keys.find(old_token)
    assert keys.find(new_token) == new
    assert (new.name, new.scopes) == ("shop", ("events:write", "usage:read"))
    ends = datetime.fromisoformat(keys.listed()[old.key_id].expires_at or "")
    assert timedelta(minutes=59) < ends - datetime.now(UTC) <= timedelta(hours=1)
    lifetime = datetime.fromisoformat(new.expires_at or "") - datetime.fromisoformat(new.created_at)
    assert lifetime == timedelta(days=90)
    keys.rotate(new.key_id, timedelta(0))
    assert keys.find(new_token) is None


def test_an_overlap_prolongs_nothing(settings: Settings) -> None:
    keys = ServiceKeys(settings)
    old, _ = keys.create("shop", ["usage:read"], timedelta(minutes=1))
    keys.rotate(old.key_id, timedelta(days=1))
    assert keys.listed()[old.key_id].expires_at == old.expires_at
    keys.revoke(old.key_id)
    with pytest.raises(UsagePipelineError, match="no active key"):
        keys.rotate(old.key_id, timedelta(days=1))


def test_a_file_that_cannot_be_read_lets_nobody_in(settings: Settings) -> None:
    keys = ServiceKeys(settings)
    _, token = keys.create("shop", ["usage:read"], None)
    path = settings.web_dir / "keys.json"
    for text in ("{", "[]", '{"keys": [{}]}', ""):
        path.write_text(text)
        with pytest.raises(UsagePipelineError, match=r"keys\.json"):
            keys.find(token)


def test_the_commands(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USAGE_HOME", str(settings.home))
    run = CliRunner()
    made = run.invoke(app, ["keys", "create", "shop", "--scope", "usage:read", "--days", "90"])
    token = made.output.splitlines()[-1]
    key = ServiceKeys(settings).find(token)
    assert key
    listed = run.invoke(app, ["keys", "list"]).output
    assert listed.startswith(f"{key.key_id} active shop: usage:read; made 20")
    assert token not in listed
    assert key.sha256 not in listed
    rotated = run.invoke(app, ["keys", "rotate", key.key_id]).output.splitlines()[-1]
    assert ServiceKeys(settings).find(rotated)
    assert run.invoke(app, ["keys", "revoke", key.key_id]).exit_code == 0
    assert ServiceKeys(settings).find(token) is None
    assert run.invoke(app, ["keys", "create", "shop"]).exit_code == 2
    assert run.invoke(app, ["keys", "create", "shop", "--scope", "all"]).exit_code == 2
