"""Reads files from others as data, and checks what they claim against what they hold."""
