"""``python -m gateway``."""

from gateway.cli import entry

entry()
