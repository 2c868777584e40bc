"""Gradients of what counts at the outputs, for values and weights inside a model."""
