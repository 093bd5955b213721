"""Dagster's view of the pipeline, one module per concept. The only code that imports Dagster."""
