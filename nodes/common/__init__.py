"""Types, checks, files, messages and memory, which every adapter uses."""
