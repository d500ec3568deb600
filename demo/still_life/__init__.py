"""The demo at 256 pixels: scenes that look like photographs. `demo` switches to them when their models are trained."""
