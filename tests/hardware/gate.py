"""The gate that was installed in a guest, as tests steer it: configuration, cards, what it did."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.hardware.guest import SLOW, Fault, Guest

CARDS = """\
{"kind":"venue","timezone":"Europe/Berlin","day_starts":"04:00","language":"de"}
{"kind":"area","id":"hall"}
{"kind":"product","id":"annual","category":"pass","rules":[{"areas":["hall"]}]}
"""
"""A venue whose pass admits always; `Gate.cards` adds a credential for each code."""


def card(n: int, code: str) -> str:
    """Credential Cn with this code, and the pass that it stands for, which admits; two records."""
    of = {"kind": "entitlement", "id": f"P{n}", "product": "annual"}
    credential = {"kind": "credential", "id": f"C{n}", "code": code, "entitlements": [f"P{n}"]}
    return f"{json.dumps(of)}\n{json.dumps(credential)}\n"


class Gate:
    """One installed gate."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def configure(self, text: str) -> None:
        """Puts /etc/gateway/gateway.toml there."""
        self.guest.write("/etc/gateway/gateway.toml", text)

    def cards(self, codes: list[str]) -> None:
        """Imports a venue in which credentials C0, C1, … carry these codes, each with a pass that admits."""
        records = CARDS + "".join(card(n, code) for n, code in enumerate(codes))
        self.guest.run("gateway import -", input=records, timeout=180).ok()

    def start(self, timeout: float = 120) -> None:
        """(Re)starts the service; comes back when it has said that it is ready."""
        self.guest.run("systemctl restart gateway", timeout=timeout).ok()

    def stop(self) -> None:
        self.guest.run("systemctl stop gateway", timeout=60).ok()

    def ask(self, call: str, **args: Any) -> Any:
        """A call of the admin socket: `status`, `events`, …"""
        return self.guest.call("control.ask", call=call, patience=20 * SLOW, **args)

    def up(self) -> bool:
        return bool(self.guest.call("control.up"))

    def last(self) -> int:
        """The number of the newest event on disk."""
        return int(self.ask("events", since=1 << 62)["last_seq"])

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """The access events after a number."""
        found: list[dict[str, Any]] = []
        while more := self.ask("events", since=since)["events"]:
            found += more
            since = more[-1]["seq"]
        return found

    def scans(self, since: int, count: int, timeout: float = 30) -> list[dict[str, Any]]:
        """The scans after a number, as soon as there are so many."""

        def enough() -> list[dict[str, Any]] | None:
            found = [e for e in self.events(since) if e["kind"] == "scan"]
            return found if len(found) >= count else None

        return self.guest.until(enough, f"{count} scans after event {since}", timeout)  # type: ignore[return-value]

    def metric(self, name: str) -> float:
        """A sample of the gate's metrics, by its name with labels as the exposition has it."""
        for line in self.ask("metrics")["text"].splitlines():
            if line.startswith(name + " "):
                return float(line.split()[-1])
        raise KeyError(name)

    def reader_up(self, name: str) -> bool:
        try:
            return self.metric(f'gateway_reader_up{{reader="{name}"}}') == 1
        except (Fault, KeyError):
            return False

    def journal(self, since: str = "") -> str:
        """What the service logged in this boot."""
        return self.guest.run(f"journalctl -b -u gateway -o cat --no-pager {since}").ok()

    def devices(self) -> list[dict[str, Any]]:
        """What `gateway devices --json` finds, as the gate's user."""
        return self.guest.run("sudo -u gateway gateway devices --json", timeout=120).lines()

    def lines_for(self, name: str, point: str, found: dict[str, Any]) -> str:
        """The configuration that `gateway devices` printed for a scanner, name and point filled in."""
        text = re.sub(r'^name = ".*"', f'name = "{name}"', found["toml"], flags=re.MULTILINE)
        return text.replace("POINT", point)
