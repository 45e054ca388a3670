"""What a gateway's events do to who is where: the movements that they make and settle. Pure.

A scan that was granted, and a lane opened by hand that has a sensor, make a movement, which a later event
``passage`` settles by naming it (``of``). A passage that names nothing (a free lane, a forced one) is a
movement of its own. ``annul`` takes one back. What is counted goes to the venue's other gates as a usage
record with the identity and time of the event that made the movement (docs/protocol.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COUNTED = frozenset(("taken", "assumed", "forced"))
NOT_TAKEN = "not_taken"
_SAID = ("at", "point", "from", "to", "holder", "entitlement", "credential", "guest")


def made(event: dict[str, Any]) -> str | None:
    """How the movement stands that this event makes; None: it makes none."""
    kind, passage = event.get("kind"), event.get("passage")
    if not isinstance(event.get("to"), str) or not isinstance(passage, str):
        return None
    if kind == "scan" and event.get("verdict") == "granted" and passage in ("pending", *COUNTED):
        return passage
    if kind == "open" and passage == "pending":
        return "pending"  # without a sensor it is `assumed`, and nobody is counted
    if kind == "passage" and event.get("of") is None and passage in COUNTED:
        return passage
    return None


def settled(event: dict[str, Any]) -> tuple[int, str] | None:
    """(number of the event that made the movement, how it stands now), of an event that settles one."""
    of, passage = event.get("of"), event.get("passage")
    if type(of) is not int or not 0 <= of < 1 << 63:
        return None
    if event.get("kind") == "annul":
        return of, NOT_TAKEN
    if event.get("kind") == "passage" and isinstance(passage, str) and passage in (NOT_TAKEN, *COUNTED):
        return of, passage
    return None


@dataclass(slots=True)
class Movement:
    """One movement of a gateway, with the event that made it, or the best that is known of that."""

    gateway: str
    epoch: int
    seq: int
    event: dict[str, Any]
    passage: str
    before: str | None = None
    """How it stood before this batch, which is what the other gates know; None: it was not."""
    stored: bool = False
    """Its event is in the database already."""

    @property
    def counts(self) -> bool:
        return self.passage in COUNTED

    def usage(self) -> dict[str, Any] | None:
        """What the other gates are to be told; None: what they know is right."""
        passage = self.passage if self.counts else NOT_TAKEN
        if passage == (self.before if self.before in COUNTED else NOT_TAKEN):
            return None
        usage: dict[str, Any] = {
            "kind": "usage", "gateway": self.gateway, "epoch": self.epoch, "seq": self.seq
        }  # fmt: skip
        for name in _SAID:
            if self.event.get(name) is not None:
                usage[name] = self.event[name]
        usage["passage"] = passage
        return usage
