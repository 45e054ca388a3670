"""What the demo says on the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap


def tell(text: str) -> None:
    """A line for people; what stands on the present one is wiped."""
    text = text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding)
    print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)  # noqa: T201 - what the demo is for


def tell_wrapped(text: str) -> None:
    """Below a verdict, broken at spaces where the terminal is too narrow."""
    width = max(40, shutil.get_terminal_size().columns - 1)
    tell(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))


def doing(text: str) -> None:
    """What is being done; on a terminal the next line takes its place."""
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\033[K{text} …")
        sys.stdout.flush()


def prompt() -> None:
    if sys.stdin.isatty():
        sys.stdout.write("scan> ")
        sys.stdout.flush()
