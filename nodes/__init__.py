"""ComfyUI adapters: schema, checks and conversion. The method itself is in `pnpmix`."""
