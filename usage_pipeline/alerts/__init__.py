"""What the numbers are for: whoever has to know is told. Reads what is published, lands nothing."""
