"""What people and systems are told of published numbers, once. Reads what is published."""
