"""The rigs on a loop in a thread of their own, and a courier between them on the test's."""

from __future__ import annotations

import asyncio
import io
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway import log
from gateway.courier import _Gate, event_for_central
from gateway.sync.client import TOKEN_FILE, Central, Limits, Tokens, tls
from gateway.sync.counts import Counts
from gateway.sync.fetch import Fetch
from gateway.sync.link import Link
from gateway.sync.worker import Changes, Pace, Sending
from tests.sync.central_rig import CentralRig
from tests.sync.gate_rig import GateRig

T = TypeVar("T")

QUICK = Pace(
    wait=1,
    idle=0.02,
    first=0.02,
    most=0.1,
    gate_first=0.02,
    gate_most=0.1,
    slow_least=0.02,
    slow_first=0.04,
    slow_most=0.1,
    look=0.02,
    held=0.3,
    hurry=0.01,
)
SYSTEM = tls(None, None, None)
LIMITS = Limits(connect=5, read=5, upload=5, total=40, download=40)


class Rigs:
    """A central and a gate, and the loop that they live on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "sync"
        self.state_dir.mkdir(mode=0o700)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.central = CentralRig()
        self.on(self.central.start())
        self.gate = GateRig(folder / "sync.sock", self.central.public)
        self.on(self.gate.start())
        self.keep_token(self.central.tokens[0])

    def on(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the rigs' loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def do(self, work: Callable[..., T], *arguments: Any) -> T:
        async def run() -> T:
            return work(*arguments)

        return self.on(run())

    def keep_token(self, token: str) -> None:
        (self.state_dir / TOKEN_FILE).write_text(token)

    def close(self) -> None:
        self.do(self.gate.stop)
        self.on(self.central.stop())
        self.on(_finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()


async def _finish() -> None:
    """Requests that were never to be answered."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.02)


@pytest.fixture
def rigs(tmp_path: Path) -> Iterator[Rigs]:
    made = Rigs(tmp_path)
    yield made
    made.close()


@dataclass
class Courier:
    """What the tests look at of a courier that runs."""

    counts: Counts
    tokens: Tokens
    tasks: list[asyncio.Task[None]]

    def count(self, name: str, **labels: str) -> float:
        return self.counts.registry.get_sample_value(name, labels) or 0


@asynccontextmanager
async def carrying(
    rigs: Rigs,
    *,
    pace: Pace = QUICK,
    limits: Limits = LIMITS,
    context: ssl.SSLContext | None = None,
    gate_seconds: float = 20,
) -> AsyncIterator[Courier]:
    """The loops of the sync between the rigs, until the block ends."""
    counts, tokens = Counts(), Tokens(rigs.state_dir, None)
    trust = context or SYSTEM
    central = Central(rigs.central.url, tokens, "ab" * 32, counts, context=trust, limits=limits)
    links = [Link(lambda seconds: _Gate(rigs.gate.path, seconds), gate_seconds) for _ in range(3)]

    def draw() -> float:
        return 0.5

    fetch = Fetch(
        links[2],
        central,
        rigs.state_dir,
        counts,
        failed=pace.central(draw),
        away=pace.gate(draw),
        slow=pace.slow(draw),
        random=draw,
    )
    changes = Changes(links[0], central, fetch, counts, pace, draw)
    sending = Sending(links[1], central, event_for_central, counts, pace, draw)
    tasks = [asyncio.create_task(each.run()) for each in (changes, fetch, sending)]
    try:
        yield Courier(counts, tokens, tasks)
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await central.close()
        await asyncio.sleep(0.02)  # a TLS connection that was given up closes in some turns of the loop
        for link in links:
            link.close()


async def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    """Wait for something to become true."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    """The log of the whole test, as text."""
    stream = io.StringIO()
    writer = log.start("debug", stream)

    def text() -> str:
        writer.close()
        return stream.getvalue()

    yield text
    writer.close()
