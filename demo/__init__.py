"""A small diffusion model of drawn scenes, on which PnP-MIX can be seen and measured without downloading anything."""
