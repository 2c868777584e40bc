"""Quantization: what its passes share. Ranges, rounding, formats, sensitivity and allocation."""
