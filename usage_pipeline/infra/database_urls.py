"""Which database is in force: a setting's, or one of the embedded Postgres."""

from __future__ import annotations

from usage_pipeline.infra.embedded_postgres import APP_DATABASE, DAGSTER_DATABASE, embedded_url
from usage_pipeline.settings import Settings


def app_database_url(settings: Settings) -> str:
    """The source database; starts the embedded server when no URL is set."""
    if settings.app_database_url:
        return settings.app_database_url.get_secret_value()
    return embedded_url(settings, APP_DATABASE)


def publish_database_url(settings: Settings) -> str:
    """The database that tables are published to; the source's when no URL is set."""
    if settings.publish_database_url:
        return settings.publish_database_url.get_secret_value()
    return app_database_url(settings)


def dagster_database_url(settings: Settings) -> str:
    """Dagster's storage; the embedded server's when no URL is set."""
    if settings.dagster_pg_url:
        return settings.dagster_pg_url.get_secret_value()
    return embedded_url(settings, DAGSTER_DATABASE)
