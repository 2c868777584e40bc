"""Mathematics in torch: tensors in, tensors out. Knows no graph and no ONNX."""
