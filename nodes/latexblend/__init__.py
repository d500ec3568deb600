"""LaTexBlend: concepts learned once, kept in files, and blended into any prompt."""
