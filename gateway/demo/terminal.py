"""``gateway demo``: the whole system on this machine, without hardware or configuration.

The central, the sync and the gate are processes of their own, as they are in earnest, in a folder that goes
when the demo ends. Made up are two serial scanners (ptys, read by the real serial reader), a lane in memory
with a passage sensor, a visitor who walks through, and the cards. Every line typed is a scan.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from gateway import log
from gateway.demo.samples import feed, zone
from gateway.demo.scanning import GateLine
from gateway.demo.system import CannotStart, System
from gateway.demo.words import ended, interactive, prompt, tell, tell_wrapped, typed

_PRESENT_AGAIN = 1.1
"""Seconds after which the same code is no longer a repeat: a little over repeat_delay_s below."""
_ANSWER = 5.0
"""Seconds to wait for the answer to a scan before saying that none came."""
_PASSAGE = 8.0
"""Seconds to wait for what became of a grant: more than the lane's timeout_s below."""
_UPLOADED = 10.0
"""Seconds to wait at the end for the central to acknowledge what it was sent."""
_LOOK = 0.2
"""Seconds between two looks at whether news have arrived."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_FROM_THE_CENTRAL = ("unknown_credential", "revoked", "suspended", "not_yet_valid", "expired", "no_right")
"""Verdicts by which a change at the central shows; the others come and go with time and visitors."""

Json = dict[str, Any]


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str | None]) -> None:
    """A thread's work: a file and /dev/null cannot be waited for on a loop. Not through ``sys.stdin``, whose
    lock this thread would still hold when the interpreter ends."""
    rest = b""
    with contextlib.suppress(OSError, RuntimeError):  # no standard input; or the demo is over
        while data := os.read(0, 65536):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                loop.call_soon_threadsafe(lines.put_nowait, _text(line))
        if rest:
            loop.call_soon_threadsafe(lines.put_nowait, _text(rest))
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(lines.put_nowait, None)


def _text(line: bytes) -> str:
    """Whatever is typed or piped is a scan, also what is no UTF-8."""
    return line.rstrip(b"\r").decode(errors="surrogateescape")


def _in_short(verdict: Json) -> str:
    """The verdict with all that is not null, as in ``gateway check``."""
    parts = [verdict["verdict"]]
    if verdict["detail"] is not None:
        parts.append(f"detail {verdict['detail']}")
    if verdict["flags"]:
        parts.append(f"flags {' '.join(verdict['flags'])}")
    if verdict["guest"]:
        parts.append(f"guest {verdict['guest']}")
    if verdict["left"] is not None:
        parts.append(f"left {verdict['left']}")
    return ", ".join(parts)


# --- scans ----------------------------------------------------------------------------------------------


class Visit:
    """What is typed is scanned; ``line`` is a scan."""

    def __init__(self, system: System) -> None:
        self._system, self._gate = system, system.gate
        self.scans = self.granted = 0
        self._patient = not interactive()
        self._scanned: dict[str, float] = {}

    async def line(self, text: str) -> None:
        """Scan one line and tell what happened."""
        out = text.startswith("out ")
        code = text.removeprefix("out ").strip()
        if not code:
            tell("  · a line without a code is not a scan")
            return
        loop = asyncio.get_running_loop()
        if self._patient and (text in self._scanned):
            # Piped lines come faster than a hand can present a card again.
            await asyncio.sleep(max(0.0, self._scanned[text] + _PRESENT_AGAIN - loop.time()))
        self._scanned[text] = loop.time()
        before = (await self._gate.status())["ledger"]["last_seq"]
        repeats = await self._repeats()
        self._gate.forget()  # a line with a tab is two scans, of which the first was told
        await self._system.scanners["out" if out else "in"].scan(code)
        verdict = await self._verdict(repeats)
        if verdict is None:
            return
        self.scans += 1
        granted = verdict["verdict"] == "granted"
        self.granted += granted
        tell(f"  {'✓' if granted else '✗'} {_in_short(verdict)}")
        tell_wrapped(f"“{verdict['message']}”")
        if verdict["notice"]:
            tell_wrapped(f"notice: {verdict['notice']}")
        if granted:
            await self._went_through(before, out)
        else:
            tell("    lane north stays shut")

    async def _verdict(self, repeats: float) -> Json | None:
        """The answer to a scan; None: there is none, and that was told."""
        deadline = asyncio.get_running_loop().time() + _ANSWER
        while asyncio.get_running_loop().time() < deadline:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._gate.verdicts.get(), 0.1)
            if await self._repeats() > repeats:
                tell("  · the same scan (a code held before the scanner counts once)")
                return None
        tell("  · no answer: the scanner sent no code")
        return None

    async def _repeats(self) -> float:
        text: str = (await self._gate.call("metrics"))["text"]
        lines = (line for line in text.splitlines() if line.startswith("gateway_repeats_total{"))
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    async def _went_through(self, before: int, out: bool) -> None:
        """Tell what becomes of the grant that is recorded after that event."""
        grant: int | None = None
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (waited := loop.time() - began) < _PASSAGE:
            events = (await self._gate.call("events", since=before))["events"]
            grant = grant or next((e["seq"] for e in events if e.get("verdict") == "granted"), None)
            for event in events:
                if grant is not None and event.get("of") == grant and event["kind"] == "passage":
                    await self._tell_passage(event["passage"] == "taken", out)
                    return
            if grant is None and waited > 1.0:
                tell_wrapped("the same grant again: its passage is still awaited, no second one is given")
                return
            await asyncio.sleep(0.02)
        tell("    lane north opened; what became of it is not known yet")

    async def _tell_passage(self, taken: bool, out: bool) -> None:
        inside = (await self._gate.status())["areas"].get("hall", 0)
        went = f"the visitor went {'out' if out else 'in'}" if taken else "nobody went through"
        tell(f"    lane north opened for 300 ms; {went}; {inside} in the hall")


async def _standing(gate: GateLine, codes: dict[str, str]) -> dict[str, str]:
    """By credential, what the central's word on it is, as the gate knows it."""
    said = {}
    for code, credential in codes.items():
        answer = await gate.call("check", code=code, point="north-in")
        detail = f" ({answer['detail']})" if answer["verdict"] == "revoked" and answer["detail"] else ""
        known = answer["verdict"] in _FROM_THE_CENTRAL
        said[f"{credential}, {code},"] = f"{answer['verdict']}{detail}" if known else "valid"
    return said


async def _tell_news(gate: GateLine, codes: dict[str, str]) -> None:
    """For ever: say when a card's standing has changed by what came from the central."""
    cursor, standing = None, await _standing(gate, codes)
    while True:
        await asyncio.sleep(_LOOK)
        snapshot = (await gate.status())["snapshot"]
        if snapshot is None or snapshot["cursor"] == cursor:
            continue
        cursor, before, standing = snapshot["cursor"], standing, await _standing(gate, codes)
        news = [f"{card} is now {word}" for card, word in standing.items() if before[card] != word]
        for each in news:
            tell(f"  · news from the central: {each}")
        if news:
            prompt()


async def _farewell(system: System, visit: Visit) -> None:
    """What was recorded here, and what of it the central has."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_UPLOADED):
            while not await _all_uploaded(system.gate):  # noqa: ASYNC110 - by another process
                await asyncio.sleep(0.05)
    try:
        async with asyncio.timeout(_ANSWER):
            ledger = (await system.gate.status())["ledger"]
    except TimeoutError:
        raise CannotStart(f"the gate does not answer{system.last_words('gate')}") from None
    here, there = ledger["last_seq"], ledger["acknowledged"]
    tell(f"\n{visit.scans} scans, {visit.granted} granted; {here} events in the ledger.")
    sure = "all acknowledged" if there >= here else f"{here - there} not acknowledged yet"
    tell(f"The central has {await _events_at(system)} of them; {sure}.")


async def _all_uploaded(gate: GateLine) -> bool:
    ledger = (await gate.status())["ledger"]
    return bool(ledger["acknowledged"] >= ledger["last_seq"])


async def _events_at(system: System) -> int:
    """How many events the central has of this gate."""
    count, since = 0, "0"
    while True:
        page = await system.admin("GET", f"events?gateway=demo&limit=1000&since={since}")
        if not page["events"]:
            return count
        count, since = count + len(page["events"]), page["next"]


# --- all of it ------------------------------------------------------------------------------------------


async def _session(folder: Path) -> None:
    """The demo from its start to the end of input."""
    records, samples = feed(datetime.now(UTC).astimezone(ZoneInfo(zone())))
    system = System(folder)
    try:
        await system.start(records, samples[0][0])
        await _greet(system, samples)
        codes = {r["code"]: r["id"] for r in records if r["kind"] == "credential"}
        news = asyncio.create_task(_tell_news(system.gate, codes))
        visit = Visit(system)
        try:
            async for line in _lines():
                await visit.line(line)
        finally:
            news.cancel()
        await _farewell(system, visit)
    finally:
        await system.close()


async def _greet(system: System, samples: list[tuple[str, str]]) -> None:
    tell("Central, sync and gate are running, each in a process of its own; scanners and lane are virtual.\n")
    tell("Type a code and press Enter: it is scanned at the entry. Ctrl-D ends.\n")
    for code, meaning in samples:
        tell(f"  {code:<18} {meaning}")
    tell("\nThis line in a second terminal revokes the first card at the central; then scan it here:\n")
    tell(f"{system.revocation()}\n")


async def _lines() -> AsyncIterator[str]:
    """What is typed, or piped, line by line."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    if sys.stdin is None:  # it is closed, and its number may be that of another file
        return
    threading.Thread(target=_read_lines, args=(asyncio.get_running_loop(), lines), daemon=True).start()
    while True:
        prompt()
        line = await lines.get()
        typed()
        if line is None:
            return
        if not interactive():
            tell(f"scan> {line}")
        yield line


async def _until_stopped() -> None:
    """The demo in a folder that goes with it, whenever and however it is told to end."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, told.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    with tempfile.TemporaryDirectory(prefix="gateway-demo-") as folder:
        session = asyncio.create_task(_session(Path(folder)))
        stop = asyncio.create_task(told.wait())
        await asyncio.wait((session, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        session.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await session


def demo() -> int:
    """Run the demo until the end of input; the exit status."""
    # Until there is somebody to hear them: a Ctrl-C that comes between would leave the folder behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    writer = log.start("critical")  # the parts have logs of their own
    try:
        asyncio.run(_until_stopped())
        return 0
    except BrokenPipeError:
        raise  # whoever read what we say has seen enough
    except (CannotStart, OSError) as error:
        with contextlib.suppress(OSError):  # the terminal may be gone
            ended()
            print(f"gateway: the demo cannot go on: {error}", file=sys.stderr)  # noqa: T201
        return 2
    finally:
        with contextlib.suppress(OSError):
            ended()
        writer.close()
