"""LaTexBlend: trained concepts, stored in files and blended into any prompt."""
