"""Layers in two or three thinner ones: which, of what rank, and with which numbers."""
