"""The pages in a real browser, on one rolled-up sample: what they say is what is published, nobody
sees what is another's, and everybody can use them.

Beside a generated sample stand some people whose numbers were chosen by hand.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import httpx
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from starlette.responses import Response
from support import AppDatabase, roll_up

from usage_pipeline.alerts import outbox
from usage_pipeline.alerts.outbox import Message
from usage_pipeline.app_db.sample import load_sample
from usage_pipeline.cli.web import _actions
from usage_pipeline.days import DayRange, ranges_of_days
from usage_pipeline.settings import Settings
from usage_pipeline.web.app import make_app
from usage_pipeline.web.identity import Identity

BEGIN, END = date(2026, 3, 7), date(2026, 5, 21)
LAST = END - timedelta(days=1)
ACME, ZETA = UUID(int=0xAC), UUID(int=0x2E7A)
OLA, MO, ADA, FAY, NED, ZED = (UUID(int=n << 64 | 1) for n in range(0xA01, 0xA07))
HOOK = UUID(int=0x40)
NAME = """Acme <b>& "Sons'"""  # which no page may take for anything but text
MODEL = "</script><img src=x onerror=alert(1)>"
WINDOWS = {"week": 7, "month": 30, "year": 365}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
METERS = """
meters:
  - {key: record_created, event_type: record_created, aggregation: sum, value: quantity,
     unit: records, description: Records created}
  - {key: api_call, event_type: api_call, aggregation: sum, value: quantity, unit: calls}
  - {key: automation_run, event_type: automation_run, aggregation: sum, value: quantity,
     unit: runs}
  - {key: storage_used, event_type: storage_used, aggregation: sum, value: quantity, unit: bytes}
  - {key: ai_tokens_used, event_type: ai_tokens_used, aggregation: sum, value: quantity,
     unit: tokens, dimensions: {model: $.model}}
  - {key: models_used, event_type: ai_tokens_used, aggregation: unique_count, value: $.model,
     unit: models}
"""
# Who, in which organisation, what, how much, when, and its model.
EVENTS = [
    (OLA, None, "record_created", "700", "2026-05-10", None),
    (OLA, None, "api_call", "400", "2026-04-10", None),
    (OLA, None, "api_call", "800", "2026-05-10", None),
    (OLA, None, "automation_run", "998.75", "2026-05-10", None),
    (OLA, None, "automation_run", "0.25", "2026-05-11", None),
    (OLA, None, "ai_tokens_used", "600", "2026-05-10", "gpt-4"),
    (OLA, None, "ai_tokens_used", "400", "2026-05-12", MODEL),
    (OLA, None, "storage_used", "1234567", "2026-05-12", None),
    (OLA, ACME, "api_call", "30", "2026-05-11", None),
    (MO, ACME, "api_call", "60", "2026-05-11", None),
    (MO, ACME, "api_call", "60", "2026-05-12", None),
    (FAY, ACME, "api_call", "30", "2026-05-12", None),
    (ADA, ACME, "storage_used", "5000000", "2026-04-12", None),
    (ZED, ZETA, "api_call", "7", "2026-05-12", None),
]
LATE = (OLA, None, "record_created", "99", "2026-05-10", None)


@dataclass(frozen=True)
class House:
    """A rolled-up source, the application on a port, and ways in."""

    source: AppDatabase
    settings: Settings
    app: Any
    address: str

    def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What is published, asked of Postgres."""
        return self.source.query(query, parameters)

    def cookies(
        self, user: UUID | None, *, admin: bool = False, org: UUID | None = None
    ) -> dict[str, str]:
        """The session of somebody who signed in; with `org` by a link for one organisation."""
        response = Response()
        identity = Identity(user, is_admin=admin, org_id=org, via="portal" if org else "token")
        self.app.state.web.sessions.begin(response, identity)
        headers = response.headers.getlist("set-cookie")
        pairs = (header.split(";")[0].split("=", 1) for header in headers)
        return {name: value for name, value in pairs if value}

    def client(self, user: UUID | None, **who: Any) -> httpx.Client:
        """Somebody's requests, without a browser."""
        cookies = self.cookies(user, **who) if user or who else {}
        return httpx.Client(base_url=self.address, cookies=cookies, timeout=60)


def insert_events(source: AppDatabase, events: Sequence[tuple[Any, ...]]) -> None:
    for user, org, kind, quantity, day, model in events:
        source.execute(
            "insert into usage_events (user_id, org_id, event_type, quantity, created_at,"
            " event_data) values (%s, %s, %s, %s, %s, jsonb_strip_nulls(jsonb_build_object"
            "('model', %s::text)))",
            (str(user), org and str(org), kind, quantity, f"{day} 12:00Z", model),
        )


def load(source: AppDatabase) -> None:
    load_sample(source.url, events=3_000, days=75, users=40, seed=3, end=END, zone=ZoneInfo("UTC"))
    people = (OLA, MO, ADA, FAY, NED, ZED)
    source.insert("users", [(str(u), f"{u}@example.com", "2026-03-08Z", None) for u in people])
    source.insert(
        "orgs",
        [(str(ACME), NAME, "2026-03-08Z", None), (str(ZETA), None, "2026-03-08Z", None)],
    )
    roles = [(ACME, OLA, "owner"), (ACME, ADA, "admin"), (ACME, MO, "member"), (ZETA, ZED, "owner")]
    source.insert("org_members", [(str(o), str(u), r, "2026-03-08Z") for o, u, r in roles])
    source.insert(
        "subscriptions",
        [
            (str(UUID(int=1)), str(OLA), None, "metered", "active", "2026-03-08Z", None),
            (str(UUID(int=2)), None, str(ACME), "crew", "active", "2026-03-08Z", None),
        ],
    )
    limited = ("record_created", "api_call", "automation_run", "ai_tokens_used")
    source.insert("plan_limits", [("metered", metric, 1000) for metric in limited])
    source.insert("plan_limits", [("crew", "api_call", 100), ("crew", "storage_used", None)])
    insert_events(source, EVENTS)


@pytest.fixture(scope="module")
def house(
    new_database: Any, make_settings: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    source = new_database()
    load(source)
    meters = tmp_path_factory.mktemp("meters") / "meters.yml"
    meters.write_text(METERS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        settings = make_settings(
            USAGE_APP_DATABASE_URL=source.url,
            USAGE_METERS_FILE=meters,
            USAGE_START_DATE=str(BEGIN),
            USAGE_UPGRADE_URL="https://app.example.com/plans",
            USAGE_WEB_URL=address,
            USAGE_WEB_DEVELOPMENT="true",
        )
        roll_up(settings, DayRange(BEGIN, END))
        insert_events(source, [LATE])
        roll_up(settings, *ranges_of_days([date(2026, 5, 10)]))
        app = make_app(settings, _actions(settings))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield House(source, settings, app, address)
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next((each for each in found if each), None)
    if path is None:
        pytest.skip("no Chromium on this machine: install Debian's package chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield opened
        opened.close()


Visit = Callable[..., Page]


@pytest.fixture
def visit(house: House, browser: Browser) -> Iterator[Visit]:
    """Opens an address as somebody. At the end no page may have complained, nor broken the policy
    of what it may load."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def go(user: UUID | None, path: str, *, status: int = 200, **options: Any) -> Page:
        who = {name: options.pop(name) for name in ("admin", "org") if name in options}
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        if user or who:
            context.add_cookies(
                [
                    {"name": name, "value": value, "url": house.address}
                    for name, value in house.cookies(user, **who).items()
                ]
            )
        page = context.new_page()

        def heard(message: Any) -> None:
            refused = status >= 400 and "Failed to load resource" in message.text
            if message.type in ("error", "warning") and not refused:
                complaints.append(f"{path}: {message.text}")

        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(f"{path}: {error}"))
        answer = page.goto(house.address + path)
        assert answer and answer.status == status, (path, answer and answer.status)
        if options.get("java_script_enabled", True):
            # Not wait_for_function, which evaluates text: the policy of the pages forbids that.
            undrawn = page.locator("[data-chart]:not([data-drawn])")
            expect(undrawn).to_have_count(0, timeout=30_000)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def cells(page: Page, table: str) -> list[list[str]]:
    """The text of a table's rows, whether it is open or not."""
    rows = page.eval_on_selector_all(
        f"{table} tbody tr",
        "rows => rows.map(row => [...row.children].map(cell => cell.textContent.trim()))",
    )
    return [[plain(cell) for cell in row] for row in rows]


def plain(text: str) -> str:
    """With ordinary spaces, of which one is one."""
    return " ".join(text.split())


def number(text: str) -> Decimal:
    return Decimal(text.replace(",", "").removesuffix(" %"))


def card_numbers(page: Page) -> dict[str, Decimal]:
    found = page.eval_on_selector_all(
        ".card",
        "cards => cards.map(c => [c.dataset.metric, c.querySelector('.figure data').value])",
    )
    return {metric: Decimal(value) for metric, value in found if value}


WHOSE = {
    "personal": "user_id = %s and org_id is null",
    "all": "user_id = %s",
    "org": "org_id = %s",
}


def days_of(period: str) -> tuple[date, date]:
    if period in WINDOWS:
        return END - timedelta(days=WINDOWS[period]), END
    first = date.fromisoformat(f"{period}-01")
    return first, (first + timedelta(days=31)).replace(day=1)


@pytest.mark.parametrize("scope", ["personal", "all", "org"])
@pytest.mark.parametrize("period", ["week", "month", "year", "2026-04", "2026-05"])
def test_cards_have_the_published_totals(
    house: House, visit: Visit, scope: str, period: str
) -> None:
    who, key = (OLA, scope) if scope != "org" else (ACME, str(ACME))
    start, end = days_of(period)
    expected = dict(
        house.sql(
            "select metric_type, sum(total_quantity) from usage.usage_daily"
            f" where {WHOSE[scope]} and usage_date >= %s and usage_date < %s"
            " and metric_type <> 'models_used' group by 1",
            str(who),
            start,
            end,
        )
    )
    page = visit(OLA, f"/usage?org={key}&period={period}")
    shown = card_numbers(page)
    # Of the window before, a metric may be there with nothing in this one.
    assert {m: q for m, q in shown.items() if m != "models_used" and q} == expected
    current = page.locator("[aria-label='Period'] [aria-current]")
    if period in WINDOWS:
        assert current.inner_text().startswith(str(WINDOWS[period]))
    else:
        assert page.input_value("#month") == period


def test_numbers_chosen_by_hand(house: House, visit: Visit) -> None:
    page = visit(OLA, "/usage?period=month")
    assert card_numbers(page)["api_call"] == 800
    assert "▲" in page.inner_text("[data-metric=api_call] .change")  # 400 in the 30 days before
    assert "100.0 % from 400" in plain(page.inner_text("[data-metric=api_call] .change"))
    assert plain(page.inner_text("[data-metric=storage_used] .figure")) == "1.23 MB"
    title = page.get_attribute("[data-metric=storage_used] .figure data", "title")
    assert title == "1,234,567 bytes"
    # Distinct values do not add up over days, and there is no published window of personal use.
    assert "choose a month" in page.inner_text("[data-metric=models_used] .change")
    month = visit(OLA, "/usage?period=2026-05")
    assert card_numbers(month)["models_used"] == 2
    org = visit(OLA, f"/usage?org={ACME}&period=2026-05")
    assert card_numbers(org)["api_call"] == 180
    assert plain(org.inner_text("[data-metric=api_call] .own")) == "You: 30 (16.6 %)"


def test_days_and_forecast_are_the_published_ones(house: House, visit: Visit) -> None:
    ((user, _),) = house.sql(
        "select user_id, count(*) from usage.usage_forecast where scope = 'user'"
        " and metric_type = 'api_call' group by 1 order by 1 limit 1"
    )
    page = visit(UUID(str(user)), "/usage?org=personal&period=month&metric=api_call")
    published = dict(
        house.sql(
            "select usage_date, total_quantity from usage.usage_daily where user_id = %s"
            " and org_id is null and metric_type = 'api_call' and usage_date >= %s",
            user,
            END - timedelta(days=30),
        )
    )
    days = [END - timedelta(days=n) for n in range(1, 31)]
    shown = cells(page, "#days details:nth-of-type(1)")
    assert [(date.fromisoformat(d), number(q)) for d, q in shown] == [
        (each, published.get(each, 0)) for each in days
    ]
    expected = house.sql(
        "select forecast_date, expected, low, high from usage.usage_forecast where scope = 'user'"
        " and user_id = %s and org_id is null and metric_type = 'api_call' order by 1",
        user,
    )
    assert len(expected) == 30
    assert [
        (date.fromisoformat(d), *map(number, numbers))
        for d, *numbers in cells(page, "#days details:nth-of-type(2)")
    ] == expected
    drawn = page.evaluate("JSON.parse(document.getElementById('trend-data').textContent).rows")
    assert [row["date"] for row in drawn] == [
        str(END - timedelta(days=30) + timedelta(days=n)) for n in range(60)
    ]
    assert page.locator("#trend svg").count() == 1


def test_who_is_new_is_told_when_a_forecast_begins(visit: Visit) -> None:
    page = visit(OLA, "/usage?metric=storage_used")
    assert "Too little history yet" in page.inner_text("#days")
    assert page.locator("#days details").count() == 1
    everything = visit(OLA, "/usage?org=all")
    assert "choose one of them" in everything.inner_text("#days")


def test_breakdowns_are_the_published_ones(house: House, visit: Visit) -> None:
    page = visit(OLA, "/usage?metric=ai_tokens_used")
    shown = cells(page, "[data-dimension=model]")
    assert [(value, number(quantity), int(events)) for value, _, quantity, events in shown] == [
        ("gpt-4", 600, 1),
        (MODEL, 400, 1),
    ]


def test_colours_of_limits(visit: Visit) -> None:
    page = visit(OLA, "/usage")
    looks = page.eval_on_selector_all(
        ".limit[data-scope=user]",
        """limits => Object.fromEntries(limits.map(limit => [limit.dataset.metric, [
            getComputedStyle(limit.querySelector('.fill')).fill,
            limit.querySelector('.status').textContent,
            limit.querySelector('b').textContent,
            limit.querySelector('.fill').getAttribute('width'),
        ]]))""",
    )
    green, yellow, red = "rgb(43, 154, 92)", "rgb(223, 164, 0)", "rgb(212, 58, 70)"
    shown = {metric: (c, said, plain(ratio)) for metric, (c, said, ratio, _) in looks.items()}
    assert shown == {
        "record_created": (green, "Within the limit", "79.9 %"),
        "api_call": (yellow, "Near the limit", "80.0 %"),
        "automation_run": (yellow, "Near the limit", "99.9 %"),
        "ai_tokens_used": (red, "Limit reached", "100.0 %"),
    }
    widths = {metric: Decimal(width) for metric, (*_, width) in looks.items()}
    assert widths["record_created"] == Decimal("79.9")
    assert widths["ai_tokens_used"] == 100
    assert page.get_attribute(".upgrade a", "href") == "https://app.example.com/plans"
    org = visit(MO, f"/usage?org={ACME}")
    assert "180 of 100 calls" in plain(org.inner_text(".limit[data-metric=api_call]"))
    past = visit(OLA, "/usage?period=2026-04")
    assert past.locator(".limit").count() == 0


def test_a_projected_day_is_told(house: House, visit: Visit) -> None:
    columns = house.sql(
        "select attname from pg_attribute where attrelid = 'usage.usage_limit_status'::regclass"
    )
    if ("projected_limit_date",) not in columns:
        pytest.skip("usage_limit_status has no outlook here")
    rows = house.sql(
        "select scope, user_id, metric_type, projected_limit_date from usage.usage_limit_status"
        " where scope = 'user' and status <> 'exceeded' and projected_limit_date is not null"
        " order by 2, 3 limit 1"
    )
    for _, user, metric, when in rows:
        page = visit(UUID(str(user)), "/usage")
        assert f"{when.day} {when:%b}" in plain(page.inner_text(f".limit[data-metric={metric}]"))


def test_restated_numbers_are_marked(house: House, visit: Visit) -> None:
    page = visit(OLA, "/usage")
    assert page.locator(".card:has(.mark)").evaluate_all("c => c.map(e => e.dataset.metric)") == [
        "record_created"
    ]
    day, metric, was, now, cause, _ = cells(page, "#restated")[0]
    assert (day, metric, was, now, cause) == (
        *("2026-05-10", "Records created", "700", "799", "late events"),
    )
    assert visit(OLA, "/usage?period=2026-04").locator("#restated").count() == 0


def test_a_number_is_explained(visit: Visit) -> None:
    page = visit(OLA, "/usage?period=2026-05")
    page.click("[data-metric=record_created] .why")
    page.wait_for_url("**/why?**")
    told = page.inner_text(".told")
    assert "799 records, 2 events" in told
    assert "700 to 799 records" in told
    assert "the same in DuckDB, Parquet, Postgres" in told
    page.click(".crumbs a")
    page.wait_for_url("**/usage?**period=2026-05")


def test_downloads(house: House, visit: Visit) -> None:
    page = visit(OLA, "/usage?org=all&period=2026-05")

    def downloaded(link: str) -> tuple[str, list[list[str]]]:
        with page.expect_download() as waiting:
            page.click(f"text={link}")
        text = Path(waiting.value.path()).read_text("utf-8")
        return waiting.value.suggested_filename, list(csv.reader(io.StringIO(text)))

    name, (header, *rows) = downloaded("Days (CSV)")
    assert name == "usage-all-2026-05-days.csv"
    assert header == ["usage_date", "org_id", "metric_type", "total_quantity", "event_count"]
    expected = house.sql(
        "select usage_date::text, coalesce(org_id::text, ''), metric_type, total_quantity,"
        " event_count from usage.usage_daily where user_id = %s and usage_date >= '2026-05-01'",
        str(OLA),
    )
    assert sorted((d, o, m, Decimal(q), int(n)) for d, o, m, q, n in rows) == sorted(expected)
    assert ["2026-05-10", "", "automation_run", "998.75", "1"] in rows

    name, (_, *totals) = downloaded("Totals (CSV)")
    assert name == "usage-all-2026-05-totals.csv"
    by_metric = {row[2]: row for row in totals}
    first = ["2026-05-01", "2026-06-01"]
    assert by_metric["automation_run"] == [*first, "automation_run", "runs", "999", "", "", "2"]

    name, (header, *events) = downloaded("Your raw events of May 2026 (CSV)")
    assert name == "usage-events-2026-05.csv"
    ((count,),) = house.source.query(
        "select count(*) from usage_events where user_id = %s and created_at >= '2026-05-01'",
        (str(OLA),),
    )
    assert len(events) == count == 9
    assert {row[3] for row in events} == {event[2] for event in EVENTS if event[0] == OLA}


def test_organisation_has_the_published_shares(house: House, visit: Visit) -> None:
    page = visit(OLA, f"/org/{ACME}?period=2026-05&metric=api_call")
    assert page.inner_text("h1") == NAME
    assert card_numbers(page)["api_call"] == 180
    shown = {row[0]: row[1:] for row in cells(page, "#members")}
    assert shown == {
        f"{str(MO)[:8]}": ["member", "", "120", "66.6 %", "2"],
        f"{str(OLA)[:8]} you": ["owner", "", "30", "16.6 %", "1"],
        f"{str(ADA)[:8]}": ["admin", "", "0", "0.0 %", "0"],
        "No member any more": ["", "", "30", "16.6 %", "1"],
    }
    alerts = page.locator("section[aria-labelledby=alerts-title]").inner_text()
    ((raised,),) = house.sql(
        "select count(*) from usage.usage_alerts where scope = 'org' and org_id = %s", str(ACME)
    )
    rows = cells(page, "section[aria-labelledby=alerts-title]")
    assert len(rows) == raised == 2
    assert {(month, share, used, limit) for month, _, share, used, limit, *_ in rows} == {
        ("May 2026", "80 %", "180", "100"),
        ("May 2026", "100 %", "180", "100"),
    }, alerts


def put_deliveries(house: House) -> tuple[UUID, UUID]:
    """Messages of two organisations that were given up; of the same webhook, to be mean."""
    found = []
    with outbox.opened(house.settings) as cursor:
        for org in (ACME, ZETA):
            payload = {"scope": "org", "user_id": None, "org_id": org, "metric_type": "api_call"}
            payload |= {"month": "2026-05-01", "threshold": "1", "used_quantity": "180"}
            payload |= {"limit_quantity": "100", "plan": "crew", "usage_date": str(LAST)}
            message = Message(
                "usage.limit_exceeded", f"{org}", org, None, payload | {"snapshot_id": "a"}
            )
            outbox.add(cursor, "usage", [message])
            recipients = [(message.message_id, outbox.WEBHOOK, HOOK)]
            outbox.address(cursor, "usage", [message.message_id], recipients)
            found.append(message.message_id)
        cursor.execute(
            "update usage.outbox_deliveries set state = 'dead', attempts = 10,"
            " reason = 'answered 500', finished_at = now()"
        )
    return found[0], found[1]


def test_deliveries_are_sent_again_by_those_who_may(house: House, visit: Visit) -> None:
    own, other = put_deliveries(house)

    def states() -> dict[UUID, str]:
        rows = house.sql("select message_id, state from usage.outbox_deliveries")
        return {UUID(str(message)): state for message, state in rows}

    page = visit(ADA, f"/org/{ACME}")
    (row,) = cells(page, "#deliveries")
    assert row[0].startswith(own.hex[:8])
    assert row[1] == "usage.limit_exceeded"
    assert "given up answered 500" in row[3]
    link = visit(ADA, f"/org/{ACME}", org=ACME)
    assert link.locator("#deliveries button").count() == 0
    address = f"/org/{ACME}/replay"
    form = {"message_id": str(own), "recipient_id": str(HOOK)}
    token = {"csrf_token": page.get_attribute("[name=csrf_token]", "value")}
    with house.client(ADA) as forged:
        assert forged.post(address, data=form).status_code == 403
        assert forged.post(address, data={**form, "csrf_token": "x"}).status_code == 403
    with house.client(ADA, org=ACME) as by_link:
        assert by_link.post(address, data={**form, **token}).status_code == 403
    with house.client(MO) as member:
        assert member.post(address, data={**form, **token}).status_code == 403  # of Ada's session
    assert states() == {own: "dead", other: "dead"}
    # With the own form and another organisation's message.
    page.eval_on_selector("[name=message_id]", f"input => input.value = '{other}'")
    page.click("text=Send again")
    page.wait_for_load_state()
    assert states() == {own: "dead", other: "dead"}
    page.click("text=Send again")
    page.wait_for_url("**#deliveries")
    assert states() == {own: "waiting", other: "dead"}
    assert "waiting" in page.inner_text("#deliveries tbody")


def test_platform_has_the_published_figures(house: House, visit: Visit) -> None:
    page = visit(NED, "/platform?month=2026-04", admin=True)
    tiles = dict(
        page.eval_on_selector_all(
            ".tile",
            "tiles => tiles.map(t => [t.querySelector('dt').textContent,"
            " t.querySelector('.figure').textContent])",
        )
    )
    tiles = {name: plain(text) for name, text in tiles.items()}
    ((users, active, orgs, subscriptions, events),) = house.sql(
        "select total_users, active_users, total_orgs, active_subscriptions, event_count"
        " from usage.platform_metrics_monthly where month = '2026-04-01'"
    )
    ((stickiness,),) = house.sql(
        "select stickiness from usage.platform_metrics_daily where metric_date = '2026-04-30'"
    )
    shown = [tiles[name] for name in ("Users", "Active users", "Organisations")]
    assert [int(number(text)) for text in shown] == [users, active, orgs]
    assert number(tiles["Active subscriptions"]) == subscriptions
    assert number(tiles["Events"]) == events
    assert number(tiles["Stickiness"]) == (stickiness * 1000).__floor__() / Decimal(10)
    for plan, count in house.sql(
        "select plan, active_subscriptions from usage.subscriptions_by_plan_daily"
        " where metric_date = '2026-04-30'"
    ):
        assert number(tiles[plan.capitalize()]) == count
    days = house.sql(
        "select metric_date::text, active_users, weekly_active_users, monthly_active_users"
        " from usage.platform_metrics_daily where metric_date >= '2026-04-01'"
        " and metric_date < '2026-05-01' order by 1 desc"
    )
    assert [
        (day, *(int(number(each)) for each in counts[:3]))
        for day, *counts in cells(page, "#activity")
    ] == days
    metrics = {
        row[0]: (number(row[5]), number(row[6]), number(row[7])) for row in cells(page, "#usage")
    }
    assert (
        metrics["Records created"]
        == house.sql(
            "select event_count, active_users, active_orgs from usage.platform_usage_monthly"
            " where month = '2026-04-01' and metric_type = 'record_created'"
        )[0]
    )
    ((total,),) = house.sql(
        "select sum(total_quantity) from usage.usage_daily where metric_type = 'api_call'"
        " and usage_date >= '2026-04-01' and usage_date < '2026-05-01'"
    )
    value = page.get_attribute("#usage tr:has-text('Api call') data", "value")
    assert Decimal(value or "") == total
    cohorts = house.sql(
        "select cohort_month, max(cohort_users), array_agg(retention_rate order by months_since)"
        " from usage.user_retention_monthly where cohort_month <= '2026-04-01'"
        " and cohort_month > '2025-04-01' group by 1 order by 1"
    )
    assert [
        (name, int(number(users)), [number(rate) for rate in rates if rate])
        for name, users, *rates in cells(page, "#retention")
    ] == [
        (f"{month:%B %Y}", users, [(rate * 1000).__floor__() / Decimal(10) for rate in rates])
        for month, users, rates in cohorts
    ]
    orgs_shown = cells(page, "section[aria-labelledby=orgs-title]")
    expected = house.sql(
        "select org_id, sum(event_count) from usage.usage_daily where org_id is not null"
        " and usage_date >= '2026-04-01' and usage_date < '2026-05-01'"
        " group by 1 order by 2 desc, 1 limit 10"
    )
    names = dict(house.source.query("select id, name from orgs"))
    assert [(n, int(number(e))) for n, e in orgs_shown] == [(names[o], e) for o, e in expected]
    people = cells(page, "section[aria-labelledby=users-title]")
    assert [(user, int(number(events))) for user, events, _ in people] == [
        (str(user)[:8], events)
        for user, events in house.sql(
            "select user_id, sum(event_count) from usage.usage_daily"
            " where usage_date >= '2026-04-01' and usage_date < '2026-05-01'"
            " group by 1 order by 2 desc, 1 limit 10"
        )
    ]
    odd = house.sql(
        "select count(*) from usage.usage_anomalies where scope in ('platform', 'org')"
        " and usage_date >= '2026-04-01' and usage_date < '2026-05-01'"
    )
    assert len(cells(page, "#quality")) == min(odd[0][0], 20)
    accuracy = house.sql("select count(*) from usage.usage_forecast_accuracy")
    assert len(cells(page, "section[aria-labelledby=accuracy-title]")) == accuracy[0][0]
    ((snapshot,),) = house.sql("select snapshot_id from usage.snapshot")
    assert cells(page, "#health")[0][1] == snapshot[:8]
    assert f"Not published: {END}" in page.inner_text("#health")  # the sample ends long ago
    assert f"from {END.day} May 2026" in tiles_note(page, "Late")


def tiles_note(page: Page, name: str) -> str:
    return page.inner_text(f".tile:has(dt:text-is('{name}')) .of")


REFUSED = [
    (None, f"/usage?org={ACME}", {}, "/sign-in"),
    (None, "/platform", {}, "/sign-in"),
    (None, f"/org/{ACME}", {}, "/sign-in"),
    (FAY, f"/usage?org={ACME}", {}, 404),  # was a member
    (FAY, f"/usage/days.csv?org={ACME}", {}, 404),
    (ZED, f"/usage?org={ACME}", {}, 404),
    (ZED, f"/usage/totals.csv?org={ACME}", {}, 404),
    (ZED, f"/why?metric=api_call&org={ACME}", {}, 404),
    (ZED, f"/org/{ACME}", {}, 404),
    (FAY, f"/org/{ACME}", {}, 404),
    (MO, f"/org/{ACME}", {}, 404),  # a member, who manages nothing
    (OLA, "/platform", {}, 404),
    (OLA, "/why?metric=api_call&org=platform", {}, 404),
    (OLA, f"/usage?org={UUID(int=99)}", {}, 404),
    (OLA, f"/org/{UUID(int=99)}", {}, 404),
    (OLA, "/usage", {"org": ZETA}, 404),  # a link for an organisation that is not theirs
    (OLA, "/usage?org=personal", {"org": ACME}, 404),  # a link for one shows that one
    (OLA, "/usage/events.csv", {"org": ACME}, 404),
    (OLA, "/why?metric=api_call&org=personal", {"org": ACME}, 404),
    (None, "/usage", {"admin": False}, 404),  # nobody's session
    (NED, "/usage/events.csv", {}, 404),  # who has none
    (OLA, "/usage?period=2019-01", {}, 404),
    (OLA, "/usage?period=0000-01", {}, 404),
    (OLA, "/usage?period=decade", {}, 404),
    (OLA, "/usage?metric=unheard_of", {}, 404),
]


@pytest.mark.parametrize(("user", "path", "who", "answer"), REFUSED)
def test_refused(house: House, user: UUID | None, path: str, who: Any, answer: Any) -> None:
    with house.client(user, **who) as client:
        response = client.get(path)
        if isinstance(answer, str):
            assert (response.status_code, response.headers["location"]) == (303, answer)
            return
        assert response.status_code == answer
        assert str(ACME) not in response.text.replace(str(response.url), "")
        assert "Acme" not in response.text


def test_allowed(house: House) -> None:
    allowed: list[tuple[UUID, str, dict[str, Any]]] = [
        (MO, f"/usage?org={ACME}", {}),
        (MO, f"/why?metric=api_call&org={ACME}&month=2026-05", {}),
        (ADA, f"/org/{ACME}", {}),
        (NED, f"/org/{ACME}", {"admin": True}),
        (NED, f"/org/{ZETA}", {"admin": True}),  # which has no name
        (NED, f"/why?metric=api_call&org={ACME}", {"admin": True}),
        (OLA, "/usage", {"org": ACME}),
    ]
    for user, path, who in allowed:
        with house.client(user, **who) as client:
            assert client.get(path).status_code == 200, path
    with house.client(None, admin=True) as client:
        assert client.get("/usage").headers["location"] == "/platform"


def test_no_page_has_anything_of_others(house: House) -> None:
    def ids(user: UUID, path: str, **who: Any) -> set[UUID]:
        with house.client(user, **who) as client:
            response = client.get(path)
        assert response.status_code == 200
        assert "@" not in response.text.replace("@example.com/plans", ""), "an e-mail address"
        return {UUID(found) for found in _UUID.findall(response.text)}

    for path in ("/usage", "/usage?org=all&period=year", f"/usage?org={ACME}&period=2026-05"):
        assert ids(OLA, path) <= {OLA, ACME}
        assert ids(MO, path) <= {MO, ACME}
    assert ids(OLA, "/usage", org=ACME) == {ACME}
    assert ids(OLA, f"/why?metric=api_call&org={ACME}&month=2026-05") <= {OLA, ACME}
    put_deliveries(house)
    messages = {UUID(str(m)) for (m,) in house.sql("select message_id from usage.outbox_messages")}
    assert ids(OLA, f"/org/{ACME}?period=2026-05") <= {OLA, MO, ADA, ACME, HOOK, *messages}


PAGES: list[tuple[UUID | None, str, dict[str, Any]]] = [
    (OLA, "/usage?metric=ai_tokens_used", {}),
    (OLA, f"/usage?org={ACME}&period=year", {}),
    (NED, "/usage", {}),  # who used nothing
    (OLA, f"/org/{ACME}", {}),
    (OLA, "/platform", {"admin": True}),
    (OLA, "/why?metric=record_created&month=2026-05", {}),
    (OLA, f"/org/{ZETA}", {"status": 404}),
    (None, "/sign-in", {}),
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("looked_at", PAGES)
def test_everybody_can_use_a_page(
    house: House, visit: Visit, looked_at: tuple[UUID | None, str, Any], scheme: str
) -> None:
    user, path, options = looked_at
    put_deliveries(house)
    page = visit(user, path, color_scheme=scheme, **options)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    size = len(page.content().encode())
    assert size <= 300_000


def test_what_a_page_loads(house: House, visit: Visit) -> None:
    """Everything is ours, and all but the chart library is at most 300 kB."""
    for user, path, options in PAGES[:5]:
        page = visit(user, path, **options)
        loaded = page.evaluate(
            "performance.getEntriesByType('resource').concat("
            "performance.getEntriesByType('navigation')).map(e => [e.name, e.decodedBodySize])"
        )
        assert all(name.startswith(house.address) for name, _ in loaded)
        assert sum(size for name, size in loaded if "/charts.js?" not in name) <= 300_000
        source = page.request.get(house.address + path).text()
        assert not re.search(r"<style|<[^>]*\s(style|on\w+)=|javascript:", source)
        assert all("json" in script for script in re.findall(r"<script(?! src)[^>]*>", source))


def test_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit(OLA, "/usage")

    def tab_to(text: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            focused = "document.activeElement.textContent.trim()"
            if page.evaluate(focused).startswith(text):
                outline = "getComputedStyle(document.activeElement, document.activeElement"
                outline += ".closest('.card h3') ? '::after' : null).outlineStyle"
                assert page.evaluate(outline) == "solid", f"{text} is focused invisibly"
                return
        raise AssertionError(f"{text} cannot be reached")

    tab_to("Skip to content")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.reload()
    tab_to("7 days")
    page.keyboard.press("Enter")
    page.wait_for_url("**period=week")
    tab_to("Choose")  # the selector's text
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    tab_to("Show")
    page.keyboard.press("Enter")
    page.wait_for_url("**period=2026-04")
    tab_to("Api call")
    page.keyboard.press("Enter")
    page.wait_for_url("**metric=api_call#days")
    tab_to("Numbers by day")
    page.keyboard.press("Enter")
    assert page.locator("#days details").first.get_attribute("open") is not None


def test_without_javascript(visit: Visit) -> None:
    page = visit(OLA, "/usage?period=2026-05&metric=api_call", java_script_enabled=False)
    assert page.inner_text("[data-metric=api_call] .figure").strip() == "800 calls"
    page.click("text=Numbers by day")
    assert page.is_visible("#days td:text-is('800')")
    page.select_option("#month", "2026-04")
    page.click("text=Show")
    assert page.inner_text("[data-metric=api_call] .figure").strip() == "400 calls"


def test_charts_follow_the_colours_of_the_page(visit: Visit) -> None:
    page = visit(OLA, "/usage", color_scheme="light")
    line = "#trend svg .mark-line path"
    light = page.get_attribute(line, "stroke")
    page.emulate_media(color_scheme="dark")
    assert light == "#3450c8"
    expect(page.locator(line)).to_have_attribute("stroke", "#93a8ff")


def test_a_page_that_a_browser_has_is_not_sent_again(house: House) -> None:
    with house.client(MO) as client:
        first = client.get(f"/usage?org={ACME}")
        tag = {"If-None-Match": first.headers["etag"]}
        again = client.get(f"/usage?org={ACME}", headers=tag)
        assert (again.status_code, again.content) == (304, b"")
        assert client.get("/usage", headers=tag).status_code == 200
        ((snapshot,),) = house.sql("select snapshot_id from usage.snapshot")
        try:  # as the next publish does
            house.source.execute("update usage.snapshot set snapshot_id = 'another'")
            assert client.get(f"/usage?org={ACME}", headers=tag).status_code == 200
        finally:
            house.source.execute("update usage.snapshot set snapshot_id = %s", (snapshot,))
        assert client.get(f"/usage?org={ACME}", headers=tag).status_code == 304
        house.source.execute("delete from org_members where user_id = %s", (str(MO),))
        try:
            assert client.get(f"/usage?org={ACME}", headers=tag).status_code == 404
        finally:
            row = (str(ACME), str(MO), "member", "2026-03-08Z")
            house.source.insert("org_members", [row])
    with house.client(OLA) as client:
        assert client.get(f"/usage?org={ACME}", headers=tag).status_code == 200


def test_the_snapshot_gives_the_same_pages(house: House) -> None:
    """With USAGE_WEB_READS=duckdb; what is in Postgres only, alerts and deliveries, is too."""
    settings = house.settings.model_copy(update={"web_reads": "duckdb"})
    snapshot = make_app(settings, _actions(settings))
    transport = httpx.ASGITransport(app=snapshot)

    async def get(path: str) -> httpx.Response:
        async with httpx.AsyncClient(
            transport=transport, base_url=house.address, cookies=cookies
        ) as client:
            return await client.get(path)

    paths = [*(path for _, path, _ in PAGES[:6]), "/usage?period=week", "/usage?org=all"]
    paths += ["/usage?period=2026-04", "/usage/days.csv?org=all&period=year"]
    cookies = house.cookies(OLA, admin=True)
    with httpx.Client(base_url=house.address, cookies=cookies) as client:
        for path in paths:
            from_postgres = client.get(path)
            from_file = _run(get, path)
            assert from_file.status_code == from_postgres.status_code == 200
            assert from_file.text == from_postgres.text, path


def _run(coroutine: Any, *arguments: Any) -> Any:
    """Beside the browser, whose loop has this thread."""
    import asyncio

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(coroutine(*arguments))))
    thread.start()
    thread.join()
    return found[0]


def test_the_time_of_the_last_publish_is_on_each_page(house: House, visit: Visit) -> None:
    ((at,),) = house.sql("select published_at from usage.snapshot")
    moment: datetime = at.astimezone(UTC)
    page = visit(OLA, "/usage")
    assert f"{moment.day} {moment:%B %Y, %H:%M} UTC" in page.inner_text("footer")
    assert "As of 20 May 2026" in page.inner_text(".as-of")
    matches = house.sql(
        "select count(*) filter (where matches is null), count(*) filter (where not matches)"
        " from usage.usage_reconciliation where usage_date = %s",
        LAST,
    )
    said = "proven against the source" if matches == [(0, 0)] else "the source was not asked"
    assert said in page.inner_text(".as-of")


def test_the_models_have_pages_for_admins(browser: Browser, house: House) -> None:
    """dbt's own, which are drawn by scripts in an origin of their own: without cookies, offline."""
    with house.client(OLA) as member, house.client(None) as nobody:
        assert member.get("/docs/dbt").status_code == 404
        assert nobody.get("/docs/dbt").status_code == 303
    with browser.new_context() as context:
        context.add_cookies(
            [
                {"name": name, "value": value, "url": house.address}
                for name, value in house.cookies(OLA, admin=True).items()
            ]
        )
        page = context.new_page()
        page.goto(f"{house.address}/docs/dbt#!/model/model.usage_pipeline.usage_monthly")
        page.get_by_role("heading", name="usage_monthly").wait_for()
        assert page.evaluate("window.origin") == "null"
