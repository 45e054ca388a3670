"""Scanners on their way from the socket to the configuration, as a technician puts them to work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tests.hardware.gate import Gate
from tests.hardware.guest import SLOW

POINT = """\
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[[lane]]
name = "north"
relay = {relay}
pulse_ms = {pulse}
{passage}
[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

"""
"""A gate with one lane; the readers come below."""


IDLE_MS = 1000
"""A guest on a busy host stops for longer than the pause that tears a typed code by default."""


@dataclass(frozen=True)
class Scanner:
    """A scanner of the bench, before it is plugged in."""

    name: str
    kind: str
    """The module in inside/."""
    label: str
    """Its USB product name, by which the technician knows it among what `gateway devices` finds."""
    socket: int
    made: dict[str, Any] = field(default_factory=dict)
    """More for the module's function ``make``."""
    layout: str = ""
    """Keyboards: what the scanner is set to, which the configuration must say too."""

    def make(self, gate: Gate) -> None:
        gate.guest.call(f"{self.kind}.make", name=self.name, label=self.label, **self.made)

    def plug(self, gate: Gate, socket: int | None = None) -> None:
        gate.guest.call(f"{self.kind}.plug", name=self.name, socket=self.socket if socket is None else socket)

    def unplug(self, gate: Gate) -> None:
        gate.guest.call(f"{self.kind}.unplug", name=self.name)

    def scrap(self, gate: Gate) -> None:
        gate.guest.call("gadget.scrap", name=self.name)

    def type(self, gate: Gate, code: str, torn: int | None = None) -> Any:
        """It reads a code. ``torn``: and is pulled out after so many characters, or reports."""
        more = {"layout": self.layout} if self.layout else {}
        return gate.guest.call(f"{self.kind}.type", name=self.name, code=code, torn=torn, **more)

    def lines(self, gate: Gate, found: dict[str, Any]) -> str:
        """The lines that `gateway devices` printed for it, and what only the technician knows."""
        text = gate.lines_for(self.name, "north-in", found)
        if self.layout:
            text = text.replace('layout = "us"', f'layout = "{self.layout}"') + f"idle_ms = {IDLE_MS}\n"
        return text


def plug_in(gate: Gate, scanners: list[Scanner]) -> None:
    """All of them, each into its socket; comes back when udev has done its part."""
    for scanner in scanners:
        scanner.make(gate)
        scanner.plug(gate)
    gate.guest.run("udevadm settle -t 150", timeout=160).ok()


def samples(gate: Gate) -> dict[str, float]:
    """The gate's metrics, by name with labels."""
    lines = [line.rsplit(" ", 1) for line in gate.ask("metrics")["text"].splitlines() if line[0] != "#"]
    return {name: float(value) for name, value in lines}


def states(gate: Gate, scanners: list[Scanner]) -> set[float]:
    """What the metric says of them: 1 where one is up, 0 where one is down."""
    now = samples(gate)
    return {now[f'gateway_reader_up{{reader="{s.name}"}}'] for s in scanners}


def ready(gate: Gate, scanners: list[Scanner]) -> None:
    """Waits until the gate has all of them open."""
    names = [s.name for s in scanners]
    gate.guest.until(lambda: states(gate, scanners) == {1}, f"{names} are ready", 60, every=1)
    if any(s.kind == "keyboard" for s in scanners):
        time.sleep(IDLE_MS / 1000)  # what a keyboard types at once could be the rest of a code: it is skipped


def gone(gate: Gate, scanners: list[Scanner]) -> None:
    """Waits until the gate has lost all of them."""
    names = [s.name for s in scanners]
    gate.guest.until(lambda: states(gate, scanners) == {0}, f"{names} are down", 60, every=1)


def dropped(gate: Gate, name: str) -> float:
    return samples(gate)[f'gateway_reader_dropped_total{{reader="{name}"}}']


def read(gate: Gate, scanner: Scanner, code: str, by: str = "") -> dict[str, Any]:
    """The scan of a code held before a scanner, as the gate recorded it; ``typed`` is what the typing gave.
    ``by``: its reader's name.

    What a guest on a busy host is too slow to take is dropped and counted, and then the visitor tries again.
    It is never another code: the one scan that there is must be of this reader."""
    for _ in range(6):
        seq = gate.last()
        typed = scanner.type(gate, code)
        end = time.monotonic() + 5 * SLOW  # longer than the pause after which a torn code is forgotten
        while time.monotonic() < end:
            if found := [e for e in gate.events(seq) if e["kind"] == "scan"]:
                assert len(found) == 1, found
                assert found[0]["reader"] == (by or scanner.name)
                return found[0] | {"typed": typed}
            time.sleep(0.2)
        assert dropped(gate, by or scanner.name) > 0, f"{scanner.name}: neither a scan nor dropped: {code}"
    raise AssertionError(f"{scanner.name}: dropped six times")
