"""Files, devices, progress, terminal, signals."""
