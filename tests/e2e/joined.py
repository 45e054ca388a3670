"""A real gate that is joined with the central's hand, for the tests of news and of those who bring it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from gateway.cache.build import build
from gateway.control import CallError
from gateway.host import write_durably
from gateway.trust import Trust, pinned_from
from tests.e2e.rig import WAIT, Json, Site, card, ndjson, product, until, venue
from tests.hand import Courier, Hand

LANES = (
    {"name": "north", "second_grant": "extend"},
    {"name": "south", "second_grant": "extend", "relay": {"driver": "memory"}},
)
POINTS = (
    {"name": "north-in", "lane": "north"},
    {"name": "north-out", "lane": "north", "from": "hall", "to": "outside"},
    {"name": "strict-in", "lane": "south", "anti_passback": "hard"},
)
READERS = (
    {"name": "in", "point": "north-in"},
    {"name": "out", "point": "north-out"},
    {"name": "strict", "point": "strict-in"},
)
CARDS = 8


def records(n: int = CARDS) -> list[Json]:
    """A venue, a product and cards OPEN0, OPEN1, …"""
    found = [*venue(), product("open")]
    for each in range(n):
        found += card(each, f"OPEN{each}", "open")
    return found


def revoked(n: int) -> Json:
    """The record with which the card OPENn ends."""
    known = {"kind": "credential", "id": f"C{n}", "code": f"OPEN{n}", "entitlements": [f"E{n}"]}
    return {**known, "state": "revoked"}


class Joined:
    """The gate, the hand of its central, and the honest courier between them."""

    def __init__(self, site: Site, hand: Hand | None = None) -> None:
        self.site, self.hand = site, hand or Hand()
        self.courier = self._courier()

    def _courier(self) -> Courier:
        return Courier(self.site.client("sync"), self.hand, self.site.folder)

    def enrol(self, **other: Any) -> int:
        epoch: int = self.site.call("enrolled", **self.hand.enrolment(**other))["epoch"]
        return epoch

    def restart(self) -> None:
        """kill -9, and a new start."""
        self.site.kill()
        self.start()

    def start(self) -> None:
        self.site.start()
        self.courier = self._courier()

    def verdict(self, code: str, reader: str = "in") -> str:
        verdict: str = self.site.scan(reader, code)["verdict"]
        return verdict

    @property
    def status(self) -> Json:
        found: Json = self.site.call("status")
        return found

    @property
    def hall(self) -> int:
        count: int = self.status["areas"]["hall"]
        return count

    def files(self) -> list[str]:
        """The generations on disk, and the key of their codes."""
        names = os.listdir(self.site.data_dir)
        return sorted(
            n for n in names if (n.startswith("snapshot-") and not n.endswith("-lock")) or n == "code.key"
        )

    def refused(self, name: str, **arguments: Any) -> str:
        """The words with which what breaks the protocol is refused."""
        with pytest.raises(CallError) as told:
            self.courier.client.call(name, **arguments)
        assert told.value.code == "refused", told.value
        return str(told.value)

    def throw(self, call: str, when: float | Callable[[], object], **arguments: Any) -> None:
        """Ask for something, and be gone so many seconds later, or when something holds, without having read
        an answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(WAIT)
            sock.connect(str(self.site.gateway["sync_socket"]))
            sock.sendall(orjson.dumps({"id": 1, "call": call, **arguments}) + b"\n")
            if callable(when):
                until(when)
            else:
                time.sleep(when)


def join(make: Callable[..., Site], **gateway: Any) -> Joined:
    """A gate with cards of its central in use, as an enrolment and a first snapshot leave it."""
    site, hand = make(LANES, POINTS, READERS, **gateway), Hand()
    log: dict[str, Any] = {
        "cursor": hand.cursor,
        "history": hand.history,
        "position": hand.position,
        "published": hand.now,
    }
    build(site.data_dir, ndjson(records()).splitlines(), source="the central", pace=0, **log)
    pinned = pinned_from(hand.enrolment())
    pinned.want_snapshot = False
    write_durably(*Trust(site.data_dir, pinned).save())
    site.start()
    joined = Joined(site, hand)
    joined.courier.tell()
    return joined
