"""What knows no usage event: files, databases, processes, permissions, signals, timings."""
