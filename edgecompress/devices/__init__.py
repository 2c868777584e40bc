"""Ways to reach hardware, one per file."""
