"""Dagster's view of the pipeline, one file per concept. The only code that imports Dagster."""
