"""What people and systems are told of published numbers, once."""
