"""The walk: calibration rows through a model block by block."""
