"""ComfyUI adapters: schema, checks and conversion. The methods themselves are in `pnpmix`."""
