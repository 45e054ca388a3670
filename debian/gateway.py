#!/opt/gateway/bin/python3 -I
"""The command gateway."""

from gateway.cli import entry

entry()
