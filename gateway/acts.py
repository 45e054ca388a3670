"""Acts by hand at the gate: open, set a lane's state, clear, annul.

They are asked for through the sockets, or by the central. Each is recorded with who asked for it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from gateway.cache.ledger import Ledger
from gateway.control import CallError
from gateway.gate import Gate
from gateway.model import OUTSIDE, LaneMode, Movement, Passage


class Working(Protocol):
    """The gate process, as far as it is acted upon."""

    gate: Gate
    ledger: Ledger


class Acts:
    """What can be done by hand on one gate process."""

    def __init__(self, daemon: Working, by: str) -> None:
        """``by``: who asks: ``admin``, ``central`` or ``operator:`` and a name."""
        self._d, self._by = daemon, by

    def open(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Open a lane once."""
        lane = self._lane(arguments)
        self._d.gate.open_once(lane, self._by, *_now())
        return {"lane": lane, "opened": True}

    def lane(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Set a lane normal, closed or free."""
        lane, state = self._lane(arguments), text(arguments, "state")
        if state not in tuple(LaneMode):
            raise CallError("bad_request", f"state must be one of {listed(LaneMode)}")
        self._d.gate.set_mode(lane, LaneMode(state), self._by, *_now())
        return {"lane": lane, "state": state}

    def clear(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Everybody in an area is outside."""
        area = text(arguments, "area")
        known = self._d.gate.world.areas.known()
        if area == OUTSIDE or area not in known:
            raise CallError("bad_request", f"area {area!r} is not known; there are {listed(known)}")
        self._d.gate.clear(area, self._by, *_now())
        return {"area": area, "cleared": True}

    def annul(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The person of an event did not go through after all."""
        seq = whole(arguments, "seq", None)
        gate = self._d.gate
        pending = gate.pending_of(seq)
        if pending is not None:
            lane, grant = pending
            gate.withdraw(lane, grant, self._by, *_now())
            return {"seq": seq, "annulled": True}
        movement: Movement | None = self._d.ledger.movement(seq)
        if movement is None:
            raise CallError("bad_request", f"event {seq} is no grant of this ledger: see gateway ledger")
        if movement.passage is Passage.NOT_TAKEN:
            raise CallError("bad_request", f"nobody went through at event {seq}; there is nothing to annul")
        gate.annul(seq, movement, self._by, *_now())
        return {"seq": seq, "annulled": True}

    def _lane(self, arguments: Mapping[str, Any]) -> str:
        lane = text(arguments, "lane")
        if lane not in self._d.gate.lanes:
            raise CallError(
                "bad_request", f"lane {lane!r} is not configured; there are {listed(self._d.gate.lanes)}"
            )
        return lane


def _now() -> tuple[int, int]:
    return time.time_ns() // 1000, time.monotonic_ns() // 1000


def text(arguments: Mapping[str, Any], name: str) -> str:
    """An argument that is a text. Raises CallError."""
    value = arguments.get(name)
    if not isinstance(value, str):
        raise CallError("bad_request", f"{name}: a text is needed")
    return value


def whole(arguments: Mapping[str, Any], name: str, default: int | None) -> int:
    """An argument that is a whole number of at most 63 bits, which is what SQLite has. Raises CallError."""
    value = arguments.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise CallError("bad_request", f"{name}: a whole number, 0 or more, is needed")
    return value


def listed(names: Iterable[object]) -> str:
    return ", ".join(str(n) for n in names) or "none"
