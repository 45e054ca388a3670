"""One connection to the gate on which it tells verdicts and lanes, for everybody who looks at a page.

It is there while somebody looks, and made again when it broke. Spoken is docs/control.md, without threads:
a verdict is to be seen at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from gateway import log
from gateway.sync.link import Away

_ASK = 2.0
"""Seconds between two questions for the status."""
_SILENT = 6.0
"""Seconds after which a gate that says nothing does not work."""
_AGAIN = 0.3
"""Seconds until a gate that is away is tried again."""
_LINGER = 30.0
"""Seconds for which the connection is kept when nobody looks any more."""
_LINE = 1 << 22
LAST = 20
"""Verdicts that are kept for who comes later."""
_PAST = 100
"""Events looked through for them."""

Verdict = Mapping[str, Any]


class Watch:
    """What the gate tells. ``run`` does the work; ``on_verdict`` and ``on_change`` are called on its loop."""

    def __init__(self, path: Path) -> None:
        self.status: dict[str, Any] | None = None
        """The gate's answer to ``status``, with lanes as they are now; None: the gate is away."""
        self.verdicts: deque[Verdict] = deque(maxlen=LAST)
        self.on_verdict: list[Callable[[Verdict], None]] = []
        self.on_change: list[Callable[[], None]] = []
        self._path = path
        self._looking = 0
        self._wanted = asyncio.Event()
        self._known = asyncio.Event()
        """It is known whether the gate is there, and how it is."""
        self._told = False

    @contextlib.contextmanager
    def look(self) -> Iterator[None]:
        """Somebody looks for as long as the block lasts."""
        self._looking += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._looking -= 1

    async def known(self, seconds: float) -> None:
        """Wait until it is known how the gate is, so that nothing is shown that is not so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._known.wait()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                await self._listen()
                self._wanted.clear()
                self._known.clear()
                if self._looking:  # somebody came at the last moment
                    self._wanted.set()
                continue
            except (OSError, EOFError, ValueError, TimeoutError, Away) as error:
                self._away(error)
            await asyncio.sleep(_AGAIN)

    def _away(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            reason = str(error) or type(error).__name__
            log.logger("pages").warning("the gate does not tell verdicts; tried again", reason=reason)
        was, self.status = self.status, None
        first = not self._known.is_set()
        self._known.set()
        if was is not None or first:
            self._changed()

    async def _listen(self) -> None:
        """Until nobody looks. Raises what can go wrong with a connection."""
        async with asyncio.timeout(_SILENT):
            reader, writer = await asyncio.open_unix_connection(self._path, limit=_LINE)
        try:
            hello = await _read(reader, _SILENT)
            if "protocol" not in hello:
                raise Away(str(hello.get("error")))
            # What is told before the answer is told anew by it.
            _ask(writer, "watch")
            await self._follow(reader, writer)
        finally:
            writer.transport.abort()

    async def _follow(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        seen = heard = loop.time()
        ask_at, past = 0.0, False
        while True:
            now = loop.time()
            if self._looking:
                seen = now
            elif now - seen > _LINGER:
                return
            if now >= ask_at:
                _ask(writer, "status")
                ask_at = now + _ASK
            try:
                message = await _read(reader, ask_at - now)
            except TimeoutError:
                if loop.time() - heard > _SILENT:
                    raise Away("it is silent") from None
                continue
            heard = loop.time()
            self._take(message)
            if self.status is not None and not past:
                past = True
                last = self.status["ledger"]["last_seq"]
                _ask(writer, "events", since=max(0, last - _PAST), limit=_PAST)

    def _take(self, message: Mapping[str, Any]) -> None:
        """One line of the gate."""
        if (verdict := message.get("verdict")) is not None:
            self.verdicts.append(verdict)
            for tell in self.on_verdict:
                tell(verdict)
        elif (lane := message.get("lane")) is not None:
            if self.status is not None:
                lanes = [lane if each["lane"] == lane["lane"] else each for each in self.status["lanes"]]
                self.status = {**self.status, "lanes": lanes}
                self._changed()
        elif message.get("id") == "status" and message.get("ok"):
            self.status = message["result"]
            if self._told:
                self._told = False
                log.logger("pages").info("the gate tells verdicts again")
            self._known.set()
            self._changed()
        elif message.get("id") == "events" and message.get("ok"):
            scans = [e for e in message["result"]["events"] if e.get("kind") == "scan"]
            told = {(v["at"], v["point"]) for v in self.verdicts}
            before = [e for e in scans if (e["at"], e["point"]) not in told]
            self.verdicts = deque(sorted((*before, *self.verdicts), key=_at), maxlen=LAST)
            self._changed()

    def _changed(self) -> None:
        for tell in self.on_change:
            tell()


def _at(verdict: Verdict) -> str:
    return str(verdict["at"])


def _ask(writer: asyncio.StreamWriter, call: str, **arguments: Any) -> None:
    writer.write(orjson.dumps({"id": call, "call": call, **arguments}) + b"\n")


async def _read(reader: asyncio.StreamReader, seconds: float) -> dict[str, Any]:
    """The next line. Raises TimeoutError, EOFError, OSError, ValueError."""
    async with asyncio.timeout(max(seconds, 0.001)):
        line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the gate closed the connection")
    message = orjson.loads(line)
    if not isinstance(message, dict):
        raise ValueError("the gate says something else than an object")
    return message
