"""What was extracted from the source, as Parquet."""
