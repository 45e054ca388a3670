"""What the demo says on the terminal."""

from __future__ import annotations

import shutil
import sys
import textwrap

_begun = False
"""A line stands on the terminal that has not ended: a prompt, or what is being done."""


def tell(text: str) -> None:
    """A line for people; one that was only begun is wiped."""
    text = text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding)
    print(f"{_wipe()}{text}", flush=True)  # noqa: T201 - this is what the demo is for


def _wipe() -> str:
    global _begun
    begun, _begun = _begun, False
    return "\r\033[K" if begun else ""


def tell_wrapped(text: str) -> None:
    """Below a verdict, broken at spaces where the terminal is too narrow."""
    width = max(40, shutil.get_terminal_size().columns - 1)
    tell(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))


def doing(text: str) -> None:
    """What is being done; on a terminal the next line takes its place."""
    if sys.stdout.isatty():
        _begin(f"{_wipe()}{text} …")


def prompt() -> None:
    """Ready for a line, if there is somebody to type it."""
    if interactive():
        _begin("scan> ")


def interactive() -> bool:
    """Whether somebody types."""
    return sys.stdin is not None and sys.stdin.isatty()


def ended() -> None:
    """No more comes on the line that was begun."""
    if _begun:
        typed()
        sys.stdout.write("\n")
        sys.stdout.flush()


def typed() -> None:
    """Whoever typed has ended the line."""
    global _begun
    _begun = False


def _begin(text: str) -> None:
    global _begun
    _begun = sys.stdout.isatty()
    sys.stdout.write(text)
    sys.stdout.flush()
