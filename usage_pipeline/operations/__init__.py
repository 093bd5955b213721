"""What an operator asks for: status, doctor, erasure, removal of what is old."""
