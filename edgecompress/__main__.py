"""``python -m edgecompress``."""

from edgecompress.cli import main

main()
