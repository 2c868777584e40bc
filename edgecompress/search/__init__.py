"""The search: candidates are built, judged and measured, and the best that keeps all is taken."""
