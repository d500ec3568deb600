"""Finding, outlining and painting out objects, and choosing a background."""
