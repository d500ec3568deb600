"""PnP-MIX (arXiv 2511.17615) as nodes."""
