"""Finding, outlining and painting out objects; the files their models come in; masks drawn over pictures."""
