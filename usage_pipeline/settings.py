"""Typed settings and the paths below USAGE_HOME. The only reader of the environment."""

from __future__ import annotations

import grp
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import psycopg2
import psycopg2.extensions
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from usage_pipeline.errors import UsagePipelineError

PROJECT_DIR = Path(__file__).resolve().parent.parent
DBT_PROJECT_DIR = PROJECT_DIR / "dbt_project"

FIRST_POSSIBLE_DAY = date(1970, 1, 1)
DEFAULT_START_DATE = date(2024, 1, 1)
_START_OF_HOME = "start_date"
# Both are whatever the machine says, and the leap-second zones are no local time at all.
_NO_ZONES = re.compile(r"localtime|posixrules|Factory|(posix|right)/.*", re.IGNORECASE)
# Of USAGE_HOME: other characters mean something in SQL, URLs, patterns of files or shells.
_PLAIN_PATH = re.compile(r"[\w/.+=@~: -]+")
# One plain address, without a name or anything else that a mail's header could be made of.
MAIL_ADDRESS = re.compile(r"[^\s\x00-\x1f\x7f@<>(),;:\"\[\]\\]+@[\w.-]+")
_POSTGRES_URL = (
    "a URL such as postgresql://user:password@host:5432/app, with the characters @ : / ? # % of a "
    "password percent-encoded (%40 is @), and no parameter that libpq does not know"
)

_ACCEPTED = {
    "usage_app_database_url": _POSTGRES_URL,
    "usage_publish_database_url": _POSTGRES_URL,
    "dagster_pg_url": _POSTGRES_URL,
    "usage_failure_webhook_url": "a URL such as https://hooks.example.com/usage",
    "usage_dagster_url": "a URL such as https://dagster.example.com",
    "usage_webhook_networks": "networks such as 10.0.0.0/8,fd00::/8, separated by commas",
    "usage_mail_from": "one e-mail address, such as usage@example.com",
    "usage_smtp_url": (
        "a URL such as smtps://user:password@mail.example.com:465 or smtp://mail.example.com:587, "
        "with special characters percent-encoded, together with USAGE_MAIL_FROM"
    ),
    "usage_publish_schema": (
        "a lower-case SQL identifier, for example usage; the schema is the pipeline's alone, so "
        "public and the schemas of Postgres are refused"
    ),
    "usage_timezone": "an IANA time zone such as UTC or America/New_York",
    "usage_start_date": "a date as YYYY-MM-DD, from 1970-01-01 to today",
    "usage_land_event_data": "true or false",
    "usage_lookback_days": "a number of days from 1 to 3650",
    "usage_max_lost_share": "a share from 0 to 1, such as 0.5",
    "usage_landing_retention_days": "a number of days from 1 to 36500; unset keeps every day",
    "usage_run_retention_days": "a number of days from 1 to 36500",
    "usage_home": (
        "the path of a directory, which need not exist yet, of letters, digits, spaces and the "
        "characters / . _ - + = @ ~ : from the root on"
    ),
    "usage_serving_group": "the name of a group of this machine; unset, its owner alone reads",
    "usage_meters_file": "the path of an existing YAML file",
    "usage_web_url": "a URL such as https://usage.example.com, without a path",
    "usage_web_reads": "postgres or duckdb",
    "usage_web_database_url": _POSTGRES_URL,
    "usage_ingest_database_url": _POSTGRES_URL,
    "usage_web_secret": "at least 32 characters, such as `openssl rand -hex 32` prints",
    "usage_web_development": "true or false",
    "usage_frame_origins": "origins such as https://app.example.com, separated by commas",
    "usage_upgrade_url": "a URL such as https://app.example.com/plans",
    "usage_jwt_secret": "at least 32 characters; the application's own",
    "usage_jwks_url": "a URL such as https://auth.example.com/.well-known/jwks.json",
    "usage_jwt_admin_claim": "a path and a value, such as app_metadata.role=admin",
    "usage_oidc_issuer": "a URL such as https://login.example.com",
    "usage_oidc_admin_claim": "a path and a value, such as groups=usage-admins",
    "cron_secret": "at least 16 characters",
}
_SECRET_VARIABLES = {
    "usage_app_database_url",
    "usage_publish_database_url",
    "usage_failure_webhook_url",
    "usage_smtp_url",
    "dagster_pg_url",
    "usage_web_database_url",
    "usage_ingest_database_url",
    "usage_web_secret",
    "usage_jwt_secret",
    "usage_oidc_client_secret",
    "cron_secret",
}
# Whose browsers talk to the same machine, without a network in between.
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Settings(BaseSettings):
    """Everything a user can set; the descriptions make the table in `docs/reference.md`.

    Attributes are named after their environment variables without the `USAGE_` prefix.
    URLs are secrets: `str(settings)` and tracebacks show asterisks.
    """

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    home: Path = Field(
        Path("data"),
        validation_alias="USAGE_HOME",
        description="Directory below which everything is written.",
    )
    app_database_url: SecretStr | None = Field(
        None,
        validation_alias="USAGE_APP_DATABASE_URL",
        description=(
            "The source, Postgres 13 or later; any `postgresql://` URL, Unix sockets included. "
            "Unset, an embedded Postgres below `USAGE_HOME`."
        ),
    )
    publish_database_url: SecretStr | None = Field(
        None,
        validation_alias="USAGE_PUBLISH_DATABASE_URL",
        description="Where tables are published. Unset, the source's database.",
    )
    publish_schema: str = Field(
        "usage",
        validation_alias="USAGE_PUBLISH_SCHEMA",
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="The schema there that the pipeline owns; not `public`.",
    )
    meters_file: Path = Field(
        DBT_PROJECT_DIR / "meters.yml",
        validation_alias="USAGE_METERS_FILE",
        description="What is measured; see [meters](meters.md).",
    )
    timezone: str = Field(
        "UTC",
        validation_alias="USAGE_TIMEZONE",
        description="IANA time zone that defines days and months.",
    )
    start_date: Annotated[date, NoDecode] = Field(
        default_factory=lambda given: _start_of_home(given.get("home")),
        validation_alias="USAGE_START_DATE",
        description=(
            "The first daily partition. Earlier days are refused, and taken out of what is "
            "published when it moves on. Unset, a home that `demo` filled begins with the sample."
        ),
    )
    land_event_data: bool = Field(
        True,
        validation_alias="USAGE_LAND_EVENT_DATA",
        description=(
            "`false` does not land `event_data`; meters with paths and exports of raw events are "
            "then refused."
        ),
    )
    lookback_days: int = Field(
        35,
        validation_alias="USAGE_LOOKBACK_DAYS",
        ge=1,
        le=3650,
        description=(
            "Days up to yesterday in which late, corrected and deleted events are looked for, by "
            "the sensor `late_events` and the checks."
        ),
    )
    max_lost_share: Decimal = Field(
        Decimal("0.5"),
        validation_alias="USAGE_MAX_LOST_SHARE",
        ge=0,
        le=1,
        description=(
            "The share of a day's events that may disappear from the source within "
            "`USAGE_LOOKBACK_DAYS` and count as a correction. A day that loses more keeps what it "
            "has."
        ),
    )
    landing_retention_days: int | None = Field(
        None,
        validation_alias="USAGE_LANDING_RETENTION_DAYS",
        ge=1,
        le=36_500,
        description=(
            "Landed days that are older, and before `USAGE_START_DATE`, are deleted. Unset, all "
            "are kept."
        ),
    )
    serving_group: str | None = Field(
        None,
        validation_alias="USAGE_SERVING_GROUP",
        description=(
            "Group of this machine that may read what is in `serving/`. Unset, their owner alone. "
            "All else below `USAGE_HOME` is for its owner."
        ),
    )
    run_retention_days: int = Field(
        90,
        validation_alias="USAGE_RUN_RETENTION_DAYS",
        ge=1,
        le=36_500,
        description=(
            "Dagster's runs and logs that are older, and superseded, are deleted, and messages "
            "that nobody waits for."
        ),
    )
    failure_webhook_url: SecretStr | None = Field(
        None,
        validation_alias="USAGE_FAILURE_WEBHOOK_URL",
        description=(
            "A failed run of the Dagster daemon is posted here as JSON: `job`, `run_id`, `message` "
            "(the cause, in one line) and `url`. Unset, nowhere."
        ),
    )
    webhook_networks: Annotated[tuple[IPv4Network | IPv6Network, ...] | None, NoDecode] = Field(
        None,
        validation_alias="USAGE_WEBHOOK_NETWORKS",
        description=(
            "Networks of your own, such as `10.0.0.0/8,fd00::/8`, whose addresses webhooks may "
            "have. Unset, those of the Internet alone."
        ),
    )
    mail_from: str | None = Field(
        None,
        validation_alias="USAGE_MAIL_FROM",
        description="The sender of e-mails about limits.",
    )
    smtp_url: SecretStr | None = Field(
        None,
        validation_alias="USAGE_SMTP_URL",
        description=(
            "The mail server: `smtps://user:password@host:465`, or `smtp://host:587`, which is "
            "STARTTLS where the server offers it. A password is sent encrypted only. Unset, no "
            "e-mail is sent."
        ),
    )
    dagster_url: str = Field(
        "http://127.0.0.1:3000",
        validation_alias="USAGE_DAGSTER_URL",
        description="Where people reach the Dagster UI; `url` above begins with it.",
    )
    dagster_pg_url: SecretStr | None = Field(
        None,
        validation_alias="DAGSTER_PG_URL",
        description=("Dagster's storage: runs, events, schedules. Unset, the embedded Postgres."),
    )

    web_url: str = Field(
        "http://127.0.0.1:8000",
        validation_alias="USAGE_WEB_URL",
        description="Where people reach the usage pages and programs the API; links begin with it.",
    )
    web_reads: Literal["postgres", "duckdb"] = Field(
        "postgres",
        validation_alias="USAGE_WEB_READS",
        description=(
            "What the usage pages read: the published schema in Postgres, or `duckdb`, the "
            "snapshot in `serving/`."
        ),
    )
    web_database_url: SecretStr | None = Field(
        None,
        validation_alias="USAGE_WEB_DATABASE_URL",
        description=(
            "The publish database, as a role that may read only, such as a login in "
            "`usage_reader`. Unset, `USAGE_PUBLISH_DATABASE_URL`, in read-only transactions."
        ),
    )
    web_secret: SecretStr | None = Field(
        None,
        validation_alias="USAGE_WEB_SECRET",
        min_length=32,
        description=(
            "Signs sessions and portal links. Unset, one is made and kept below `USAGE_HOME`; set "
            "it where several machines serve the pages."
        ),
    )
    web_development: bool | None = Field(
        None,
        validation_alias="USAGE_WEB_DEVELOPMENT",
        description=(
            "`true` lets who sits at this machine pick a user, without a password; only on "
            "127.0.0.1. Unset, while the source is the embedded Postgres, no other sign-in is set, "
            "and `USAGE_WEB_URL` is this machine's."
        ),
    )
    frame_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validation_alias="USAGE_FRAME_ORIGINS",
        description="Origins, by commas, whose pages may show usage pages in a frame. Unset, none.",
    )
    upgrade_url: str | None = Field(
        None,
        validation_alias="USAGE_UPGRADE_URL",
        description="Where a user changes the plan; the usage page links to it near a limit.",
    )
    jwt_secret: SecretStr | None = Field(
        None,
        validation_alias="USAGE_JWT_SECRET",
        min_length=32,
        description="Secret of the application's own HS256 tokens, as Supabase's JWT secret.",
    )
    jwks_url: str | None = Field(
        None,
        validation_alias="USAGE_JWKS_URL",
        description="Public keys of the application's RS256, ES256 or EdDSA tokens.",
    )
    jwt_issuer: str | None = Field(
        None,
        validation_alias="USAGE_JWT_ISSUER",
        description="`iss` that tokens must have. Unset, any.",
    )
    jwt_audience: str | None = Field(
        None,
        validation_alias="USAGE_JWT_AUDIENCE",
        description="`aud` that tokens must have, such as Supabase's `authenticated`. Unset, any.",
    )
    jwt_admin_claim: str = Field(
        "app_metadata.role=admin",
        validation_alias="USAGE_JWT_ADMIN_CLAIM",
        pattern=r"^[^=\s]+=.+$",
        description=(
            "The claim of a token that makes an admin: a path of names, and the value, or one of "
            "a list. One that users can write themselves, such as `user_metadata`, is refused."
        ),
    )
    oidc_issuer: str | None = Field(
        None,
        validation_alias="USAGE_OIDC_ISSUER",
        description="OpenID Connect for people of the company. Unset, none.",
    )
    oidc_client_id: str | None = Field(
        None, validation_alias="USAGE_OIDC_CLIENT_ID", description="The client's id there."
    )
    oidc_client_secret: SecretStr | None = Field(
        None, validation_alias="USAGE_OIDC_CLIENT_SECRET", description="The client's secret there."
    )
    oidc_admin_claim: str = Field(
        "groups=usage-admins",
        validation_alias="USAGE_OIDC_ADMIN_CLAIM",
        pattern=r"^[^=\s]+=.+$",
        description="The claim of an id token that makes an admin, as above.",
    )
    ingest_database_url: SecretStr | None = Field(
        None,
        validation_alias="USAGE_INGEST_DATABASE_URL",
        description=(
            "The source, as a role that may insert events; `POST /api/usage/events` writes there. "
            "Unset, the embedded Postgres, and otherwise events are not taken."
        ),
    )
    cron_secret: SecretStr | None = Field(
        None,
        validation_alias="CRON_SECRET",
        min_length=16,
        description="What `POST /api/cron/aggregate-usage` asks for. Unset, nobody may.",
    )

    @field_validator("home", "meters_file")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("home")
    @classmethod
    def _directory(cls, value: Path) -> Path:
        existing = next(path for path in (value, *value.parents) if path.exists())
        if not existing.is_dir():
            raise ValueError("a file is in the way")
        if not _PLAIN_PATH.fullmatch(str(value)):
            raise ValueError("a character that is not taken")
        return value

    @field_validator("meters_file")
    @classmethod
    def _existing(cls, value: Path) -> Path:
        if not value.is_file():
            raise ValueError("no such file")
        return value

    @field_validator("publish_schema")
    @classmethod
    def _own_schema(cls, value: str) -> str:
        if value in ("public", "information_schema") or value.startswith("pg_"):
            raise ValueError("not the pipeline's own")
        return value

    @field_validator("start_date", mode="before")
    @classmethod
    def _plain_date(cls, value: object) -> object:
        if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", value):
            raise ValueError("not a date")  # a number would be taken for seconds since 1970
        return value

    @field_validator("start_date")
    @classmethod
    def _possible_date(cls, value: date) -> date:
        # A day more, because it is tomorrow already in some zones.
        if not FIRST_POSSIBLE_DAY <= value <= datetime.now(UTC).date() + timedelta(days=1):
            raise ValueError("out of range")
        return value

    @field_validator(
        "app_database_url",
        "publish_database_url",
        "dagster_pg_url",
        "web_database_url",
        "ingest_database_url",
    )
    @classmethod
    def _postgres_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value:
            _check_postgres_url(value.get_secret_value())
        return value

    @field_validator("failure_webhook_url")
    @classmethod
    def _http_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(("https://", "http://")):
            raise ValueError("not an http(s):// URL")
        return value

    @field_validator("webhook_networks", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("mail_from")
    @classmethod
    def _one_address(cls, value: str | None) -> str | None:
        if value and not MAIL_ADDRESS.fullmatch(value):
            raise ValueError("not one address")
        return value

    @field_validator("smtp_url")
    @classmethod
    def _mail_server(cls, value: SecretStr | None, given: ValidationInfo) -> SecretStr | None:
        if value:
            parts = urlsplit(value.get_secret_value())
            plain = not (parts.path.strip("/") or parts.query or parts.fragment)
            if parts.scheme not in ("smtp", "smtps") or not parts.hostname or not plain:
                raise ValueError("not an smtp(s):// URL")
            if parts.port == 0 or not given.data.get("mail_from"):
                raise ValueError("no port, or no sender")
        return value

    @field_validator("frame_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        origins = tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        # They become a part of a header, in which a semicolon or a star means something.
        if not all(re.fullmatch(r"https?://[\w.-]+(:\d+)?", origin) for origin in origins):
            raise ValueError("not origins")
        return origins

    @field_validator("jwks_url", "oidc_issuer", "upgrade_url")
    @classmethod
    def _safe_url(cls, value: str | None) -> str | None:
        if value and not value.startswith(("https://", "http://")):
            raise ValueError("not an http(s):// URL")
        return value

    @field_validator("jwt_admin_claim", "oidc_admin_claim")
    @classmethod
    def _claim_of_the_issuer(cls, value: str) -> str:
        if value.startswith("user_metadata"):
            raise ValueError("users write it themselves")
        return value

    @field_validator("dagster_url", "web_url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        if not value.startswith(("https://", "http://")):
            raise ValueError("not an http(s):// URL")
        return value.rstrip("/")

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("unknown time zone") from error
        if _NO_ZONES.fullmatch(value):
            raise ValueError("not a zone that means the same on every machine")
        return value

    @field_validator("serving_group")
    @classmethod
    def _known_group(cls, value: str | None) -> str | None:
        if value:
            try:
                grp.getgrnam(value)
            except KeyError as error:
                raise ValueError("unknown group") from error
        return value

    @property
    def development(self) -> bool:
        """Whether the usage pages let their user pick whom to be."""
        if self.web_development is None:
            others = (self.app_database_url, self.jwt_secret, self.jwks_url, self.oidc_issuer)
            return not any(others) and urlsplit(self.web_url).hostname in LOOPBACK
        return self.web_development

    @property
    def serving_gid(self) -> int | None:
        """The id of `USAGE_SERVING_GROUP`."""
        return grp.getgrnam(self.serving_group).gr_gid if self.serving_group else None

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def today(self) -> date:
        """The current local date in `USAGE_TIMEZONE`; the day that is not over yet."""
        return datetime.now(self.zone).date()

    def day_start(self, day: date) -> datetime:
        """The instant at which a local day begins, in UTC, right across DST changes."""
        local = datetime(day.year, day.month, day.day, tzinfo=self.zone)
        return local.astimezone(ZoneInfo("UTC"))

    def day_bounds(self, day: date) -> tuple[datetime, datetime]:
        """`[start, end)` of a local day as UTC instants; 23, 24 or 25 hours apart."""
        return self.day_start(day), self.day_start(day + timedelta(days=1))

    @property
    def landing_dir(self) -> Path:
        return self.home / "landing"

    @property
    def events_dir(self) -> Path:
        return self.landing_dir / "usage_events"

    @property
    def damaged_dir(self) -> Path:
        """Files of lost days, out of the way of what reads landing."""
        return self.landing_dir / "damaged"

    @property
    def source_schema_path(self) -> Path:
        return self.landing_dir / "source_schema.json"

    @property
    def warehouse_path(self) -> Path:
        return self.home / "warehouse.duckdb"

    @property
    def published_path(self) -> Path:
        """What is published, as the pipeline has it; see `serving.published`."""
        return self.home / "published.duckdb"

    @property
    def audit_path(self) -> Path:
        """What the last audit found; see `audit.notices`."""
        return self.home / "audit.json"

    @property
    def alerts_path(self) -> Path:
        """What was last compared with limits; see `audit.notices`."""
        return self.home / "alerts.json"

    @property
    def serving_dir(self) -> Path:
        return self.home / "serving"

    @property
    def snapshot_path(self) -> Path:
        return self.serving_dir / "usage.duckdb"

    @property
    def web_dir(self) -> Path:
        """What the usage pages keep: keys, and scripts that are made once."""
        return self.home / "web"

    @property
    def exports_dir(self) -> Path:
        return self.home / "exports"

    @property
    def postgres_dir(self) -> Path:
        return self.home / "postgres"

    @property
    def dagster_home(self) -> Path:
        return self.home / "dagster"

    @property
    def dbt_target_dir(self) -> Path:
        return self.home / "dbt"

    @property
    def scratch_dir(self) -> Path:
        """Temporary files; on the same file system as the outputs, so that renames are atomic."""
        return self.home / "tmp"


def _start_of_home(home: Path | None) -> date:
    """The first day of a home whose history is a demo's (`begin_with`), or the default of all."""
    try:
        return date.fromisoformat((home or Path()).joinpath(_START_OF_HOME).read_text())
    except (OSError, ValueError):
        return DEFAULT_START_DATE


def begin_with(settings: Settings, first: date) -> Settings:
    """Make `first` the start of this home wherever `USAGE_START_DATE` is not set; a sample's days
    before it would all be missing ones."""
    if "start_date" in settings.model_fields_set:
        return settings
    settings.home.mkdir(parents=True, exist_ok=True)
    settings.home.joinpath(_START_OF_HOME).write_text(first.isoformat())
    return load_settings()


def _check_postgres_url(url: str) -> None:
    """Refuse what libpq does not read, or reads otherwise than it was meant.

    An unencoded `/` or `@` in a password moves a part of it into the host, port or database name,
    which error messages show.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("not a postgresql:// URL")
    _, _, address = url.partition("://")
    user_to_database, _, _ = address.partition("?")
    user_to_port, _, database = user_to_database.partition("/")
    try:
        parts = psycopg2.extensions.parse_dsn(url)
    except psycopg2.Error:
        raise ValueError("not read by libpq") from None  # whose message may show the password
    ports = str(parts.get("port", "")).split(",")
    if (
        user_to_port.count("@") > 1
        or "@" in database
        or not all(re.fullmatch(r"\d*", port) for port in ports)
    ):
        raise ValueError("a special character is not encoded")


def load_settings() -> Settings:
    """Read the environment and `.env`.

    Raises:
        UsagePipelineError: a variable has a bad value; names it, the value and what is accepted.
    """
    try:
        return Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).lower()
        given = first["input"]
        if isinstance(given, Path):  # the default, which has no name of its own
            name, given = f"usage_{name}", str(given)
        shown = "a value that is not shown" if name in _SECRET_VARIABLES else repr(given)
        raise UsagePipelineError(
            f"{name.upper()} is {shown}, which is not accepted",
            f"Set it to {_ACCEPTED.get(name, 'a valid value')}" + " in the environment or in .env",
        ) from None
