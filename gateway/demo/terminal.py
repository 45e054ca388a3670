"""``gateway demo``: the whole gate on this machine, without hardware or configuration.

A virtual serial scanner (a pty, read by the real serial reader), a lane in memory with a passage sensor,
and a visitor who walks through shortly after the lane opens. Every line typed is a scan.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import textwrap
import threading
import tty
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import orjson

from gateway import log
from gateway.cache.build import build
from gateway.configload import loads
from gateway.daemon import Daemon
from gateway.host import monotonic, wall
from gateway.model import Decision, Scan, Verdict
from gateway.turnstile.relay import MemoryInput, MemoryRelay
from gateway.world import PointAt

_WALK = 0.4
"""Seconds from the lane's opening to the visitor's passage."""
_PRESENT_AGAIN = 1.1
"""Seconds after which the same code is no longer a repeat: a little over repeat_delay_s below."""
_ANSWER = 5.0
"""Seconds to wait for the answer to a scan before saying that none came."""

_CONFIG = """
[gateway]
id = "demo"
data_dir = {data_dir}

[[lane]]
name = "north"
relay = {{ driver = "memory" }}
pulse_ms = 300
passage = {{ driver = "memory", timeout_s = 5 }}

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"
anti_passback = "hard"
guest_window_s = 30

[[point]]
name = "north-out"
lane = "north"
from = "hall"
to = "outside"

[[reader]]
name = "scanner-in"
point = "north-in"
driver = "serial"
device = {scanner_in}
repeat_delay_s = 1.0

[[reader]]
name = "scanner-out"
point = "north-out"
driver = "serial"
device = {scanner_out}
repeat_delay_s = 1.0
"""

Json = dict[str, Any]


def _zone() -> str:
    """The machine's time zone by name, UTC where it has none."""
    names = [
        os.environ.get("TZ", "").lstrip(":"),
        str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2],
    ]
    for name in names:
        try:
            if name and ZoneInfo(name):
                return name
        except (ZoneInfoNotFoundError, ValueError, OSError):
            continue
    return "UTC"


def feed(now: datetime) -> tuple[list[Json], list[tuple[str, str]]]:
    """The sample records, made to fit this moment, and the sample codes with what they show."""
    today = now.date()
    year = {"valid_from": f"{today.year}-01-01", "valid_until": f"{today.year + 1}-12-31"}
    later = now.replace(minute=0, second=0, microsecond=0) + timedelta(hours=3)
    hours = f"{later:%H:%M}-{later + timedelta(hours=2):%H:%M}"
    begins, ends = now - timedelta(hours=1), now + timedelta(hours=4)
    records: list[Json] = [
        {"kind": "venue", "timezone": str(now.tzinfo), "day_starts": "04:00", "language": "en"},
        {"kind": "area", "id": "hall", "name": {"en": "Hall", "de": "Halle"}, "capacity": 800},
        {
            "kind": "event",
            "id": "v1",
            "tag": "vernissage",
            "areas": ["hall"],
            "from": begins.isoformat(),
            "until": ends.isoformat(),
        },
    ]

    def product(id_: str, *rules: Json, **more: Any) -> None:
        records.append({"kind": "product", "id": id_, "rules": list(rules), **more})

    product("family", {"areas": ["hall"], "guests": 1}, name={"en": "Family"}, grace_days=14)
    product(
        "patron", {"areas": ["hall"], "during": "vernissage", "early_minutes": 60, "guests": 1}, tier="gold"
    )
    product("single", {"areas": ["hall"], "limits": [{"max": 1, "per": "term"}]}, category="ticket")
    product("annual", {"areas": ["hall"]}, category="pass")
    product("member", category="membership", club="friends")
    product("off-peak", {"areas": ["hall"], "hours": [hours]}, name={"en": "Off-peak"})

    def card(
        n: int, code: str, product_: str, *more_products: str, state: str = "active", **more: Any
    ) -> None:
        entitlements = []
        for i, each in enumerate((product_, *more_products)):
            entitlements.append(f"E{n}{'abc'[i] if i else ''}")
            records.append(
                {
                    "kind": "entitlement",
                    "id": entitlements[-1],
                    "product": each,
                    "holder": f"H{n}",
                    **year,
                    **(more if not i else {}),
                }
            )
        records.append(
            {"kind": "credential", "id": f"C{n}", "code": code, "state": state, "entitlements": entitlements}
        )

    card(1, "FAMILY-8K2M", "family")
    card(2, "VERNISSAGE-4T7Q", "patron")
    card(3, "SUSPENDED-2PX9", "family", state="active")
    records[-2]["state"] = "suspended"
    card(4, "NEWCARD-5H3J", "annual")
    records.append(
        {
            "kind": "credential",
            "id": "C4old",
            "code": "LOSTCARD-5H3J",
            "state": "lost",
            "entitlements": ["E4"],
        }
    )
    card(5, "REPLACED-7W1B", "annual", state="replaced")
    card(6, "PASS+MEMBER-6D4F", "member", "annual")
    card(7, "GRACE-3N8C", "family", valid_until=f"{today - timedelta(days=3)}")
    card(8, "OFFPEAK-9R2L", "off-peak")
    card(9, "SINGLE-1Z5V", "single")
    records.append(
        {
            "kind": "holder",
            "id": "H1",
            "notice": {"en": "Your new card is at the desk", "de": "Ihre neue Karte liegt bereit"},
        }
    )
    records.append({"kind": "holder", "id": "H6", "language": "de"})
    return records, [
        ("FAMILY-8K2M", "a family with a plus-one: scan it again for the guest"),
        ("VERNISSAGE-4T7Q", "admits to vernissages, and one is on now"),
        ("SUSPENDED-2PX9", "a membership that is suspended"),
        ("LOSTCARD-5H3J", "a lost card; its membership lives on in the next one"),
        ("NEWCARD-5H3J", "the card that was issued for it"),
        ("REPLACED-7W1B", "a card that was replaced by another"),
        ("PASS+MEMBER-6D4F", "annual pass and membership on one code, in German"),
        ("GRACE-3N8C", "expired three days ago, within 14 days of grace"),
        ("OFFPEAK-9R2L", f"off-peak: admits from {hours.replace('-', ' to ')}"),
        ("SINGLE-1Z5V", "a single ticket: admits once"),
        ("out FAMILY-8K2M", "the first card at the exit: out, a space and a code"),
        ("ANYTHING-ELSE", "an unknown code"),
    ]


class Pty:
    """A virtual serial scanner: what is written here, the serial reader reads at ``device``."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        self.device = os.ttyname(self._slave)

    def scan(self, code: str) -> None:
        data = code.encode(errors="surrogateescape") + b"\r"
        while data:
            data = data[os.write(self._master, data) :]

    def close(self) -> None:
        os.close(self._master)
        os.close(self._slave)


class Demo:
    """The gate with its virtual scanner and visitor; ``line`` is a scan."""

    def __init__(self, daemon: Daemon, scanners: dict[str, Pty]) -> None:
        self._daemon = daemon
        self._scanners = scanners
        self._answers: asyncio.Queue[tuple[PointAt, Decision, int]] = asyncio.Queue()
        self._ledger_said = daemon.gate.on_verdict
        daemon.gate.on_verdict = self._verdict
        self._relay = daemon.relays["north"]
        sensor = daemon.inputs[0]
        assert isinstance(self._relay, MemoryRelay)
        assert isinstance(sensor, MemoryInput)
        self._sensor = sensor
        self.scans = self.granted = 0
        self._patient = not sys.stdin.isatty()
        self._scanned: dict[str, float] = {}

    def _verdict(self, scan: Scan, at: PointAt, decision: Decision, now: int) -> None:
        self._ledger_said(scan, at, decision, now)
        self._answers.put_nowait((at, decision, now))

    async def line(self, text: str) -> None:
        """Scan one line and tell what happened."""
        out = text.startswith("out ")
        code = text.removeprefix("out ").strip()
        if not code:
            _tell("  · a line without a code is not a scan")
            return
        relay = self._relay
        assert isinstance(relay, MemoryRelay)
        pulses = len(relay.history)
        repeats = self._repeats()
        loop = asyncio.get_running_loop()
        if self._patient and (text in self._scanned):
            # Piped lines come faster than a hand can present a card again.
            await asyncio.sleep(max(0.0, self._scanned[text] + _PRESENT_AGAIN - loop.time()))
        self._scanned[text] = loop.time()
        while not self._answers.empty():  # a line with a tab is two scans, of which the first was told
            self._answers.get_nowait()
        # In a thread: what is longer than the pty's buffer waits for the reader, which is on this loop.
        await loop.run_in_executor(None, self._scanners["out" if out else "in"].scan, code)
        deadline = loop.time() + _ANSWER
        while self._answers.empty():
            if self._repeats() > repeats:
                _tell("  · the same scan (a code held before the scanner counts once)")
                return
            if loop.time() > deadline:
                _tell("  · no answer: the scanner sent no code")
                return
            await asyncio.sleep(0.01)
        at, decision, now = self._answers.get_nowait()
        self.scans += 1
        told = self._daemon.gate.tell(at, decision, now)
        granted = decision.verdict is Verdict.GRANTED
        self.granted += granted
        _tell(f"  {'✓' if granted else '✗'} {_in_short(decision)}")
        _tell_wrapped(f"“{told.message}”")
        if told.notice:
            _tell_wrapped(f"notice: {told.notice}")
        if not granted:
            _tell("    lane north stays shut")
            return
        if not await self._until(lambda: len(relay.history) > pulses):
            _tell_wrapped("the same grant again: its passage is still awaited, no second one is given")
            return
        await asyncio.sleep(_WALK)
        self._sensor.fire()
        way = "out" if at.exit else "in"
        _tell(f"    lane north opened for 300 ms; the visitor went {way}; {self._inside()}")

    async def _until(self, holds: Callable[[], bool]) -> bool:
        """Wait a little for something to hold."""
        for _ in range(100):
            if holds():
                return True
            await asyncio.sleep(0.01)
        return False

    def _repeats(self) -> float:
        metrics = self._daemon.metrics.repeats
        return float(sum(metrics.labels(reader)._value.get() for reader in ("scanner-in", "scanner-out")))

    def _inside(self) -> str:
        count = self._daemon.gate.crowd.count("hall", wall())
        return f"{count} in the hall"


def _in_short(decision: Decision) -> str:
    """The verdict with all that is not null, as in ``gateway check``."""
    parts = [decision.verdict.value]
    if decision.detail is not None:
        parts.append(f"detail {decision.detail}")
    if decision.flags:
        parts.append(f"flags {' '.join(decision.flags)}")
    if decision.guest:
        parts.append(f"guest {decision.guest}")
    if decision.left is not None:
        parts.append(f"left {decision.left}")
    return ", ".join(parts)


def _tell(text: str) -> None:
    text = text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding)
    print(text, flush=True)  # noqa: T201 - this is what the demo is for


def _tell_wrapped(text: str) -> None:
    """Below a verdict, broken at spaces where the terminal is too narrow."""
    width = max(40, shutil.get_terminal_size().columns - 1)
    _tell(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="    "))


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str | None]) -> None:
    for line in sys.stdin.buffer:  # bytes: whatever is typed or piped is a scan, also what is no UTF-8
        text = line.rstrip(b"\r\n").decode(errors="surrogateescape")
        loop.call_soon_threadsafe(lines.put_nowait, text)
    loop.call_soon_threadsafe(lines.put_nowait, None)


async def _serve(folder: Path) -> None:
    now = datetime.now(UTC).astimezone(ZoneInfo(_zone()))
    records, samples = feed(now)
    build(folder, map(orjson.dumps, records), source="demo", pace=0)
    scanners = {"in": Pty(), "out": Pty()}
    config = _CONFIG.format(
        data_dir=orjson.dumps(str(folder)).decode(),
        scanner_in=orjson.dumps(scanners["in"].device).decode(),
        scanner_out=orjson.dumps(scanners["out"].device).decode(),
    )
    daemon = Daemon(loads(config, "demo"), signals=False)
    await daemon.start()
    try:
        demo = Demo(daemon, scanners)
        _tell("The gate is running: virtual serial scanners, a lane in memory, no network.\n")
        _tell("Type a code and press Enter: it is scanned at the entry. Ctrl-D ends.\n")
        for code, meaning in samples:
            _tell(f"  {code:<18} {meaning}")
        _tell("")
        lines: asyncio.Queue[str | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        threading.Thread(target=_read_lines, args=(loop, lines), daemon=True).start()
        stop = asyncio.create_task(daemon.wait())
        while True:
            if sys.stdin.isatty():
                sys.stdout.write("scan> ")
                sys.stdout.flush()
            get = asyncio.create_task(lines.get())
            await asyncio.wait((get, stop), return_when=asyncio.FIRST_COMPLETED)
            if not get.done():
                get.cancel()
                break
            line = get.result()
            if line is None:
                break
            if not sys.stdin.isatty():
                _tell(f"scan> {line}")
            await demo.line(line)
        stop.cancel()
        await asyncio.sleep(0.05)
        daemon.gate.tick(wall(), monotonic())
        _tell(f"\n{demo.scans} scans, {demo.granted} granted; {daemon.ledger.last_seq} events in the ledger.")
    finally:
        daemon.close()
        for scanner in scanners.values():
            scanner.close()


def demo() -> int:
    """Run the demo until the end of input; the exit status."""
    writer = log.start("error")
    try:
        with tempfile.TemporaryDirectory(prefix="gateway-demo-") as folder:
            asyncio.run(_serve(Path(folder)))
    except KeyboardInterrupt:
        _tell("")
    finally:
        writer.close()
    return 0
