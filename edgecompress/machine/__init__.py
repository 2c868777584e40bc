"""The machine that this process runs on: its facts, and how quiet it is."""
