"""What an operator asks for: status, doctor, erasure, retention."""
