"""The application's tables, which nothing here makes."""

import dagster as dg

from usage_pipeline.orchestration.names import OWNERS

SOURCE_TABLES = {
    "usage_events": "Usage events as the application logs them; read one day at a time.",
    "users": "Users, without their e-mail addresses.",
    "orgs": "Organisations.",
    "org_members": "Who belongs to which organisation.",
    "subscriptions": "Subscriptions of users and organisations.",
    "plan_limits": "What each plan includes.",
    "org_webhooks": "Where organisations are told; read when something is sent, and not landed.",
}


def tables() -> list[dg.AssetSpec]:
    """One a table that is read."""
    return [
        dg.AssetSpec(
            ["app_db", table],
            group_name="app_db",
            description=description,
            owners=OWNERS,
            kinds={"postgres"},
        )
        for table, description in SOURCE_TABLES.items()
    ]
