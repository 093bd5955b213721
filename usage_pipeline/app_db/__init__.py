"""The source: the application's database."""
