"""Named settings of a run: one TOML file each, read by training/config.py."""
