"""LaTexBlend: concepts trained once, kept in files, and blended into any prompt."""
