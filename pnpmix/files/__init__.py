"""Files that people get from others, read as data: what they claim is held against what they hold."""
