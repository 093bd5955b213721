"""Where dbt builds: the single writer, the pending days, the transformer."""
