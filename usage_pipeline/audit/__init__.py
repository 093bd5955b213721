"""Whether the numbers are right, everywhere, and as new as they should be."""
