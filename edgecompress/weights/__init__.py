"""Weights in files of their own, and model files that hold them."""
