"""Rows that models are calibrated and validated on."""
