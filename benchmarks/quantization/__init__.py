"""All quantizers on all models; see ``python -m quantization --help`` and docs/quantization.md."""
