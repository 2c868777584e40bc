"""Low-rank factorization; see ``python -m factorization --help`` and docs/factorization.md."""
