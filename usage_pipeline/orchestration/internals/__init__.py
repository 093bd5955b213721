"""What depends on private names of Dagster: the only code that imports them, a module for each."""
