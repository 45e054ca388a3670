"""The server under the pages, with short limits: clients that take their time, and faults of our own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from gateway.control import Socket
from gateway.courier import _Gate
from gateway.sync.counts import Counts
from gateway.sync.server import Limits, serve
from gateway.sync.web import Pages
from tests.sync.conftest import until

STATUS: dict[str, Any] = {
    "venue": {"language": "en"},
    "lanes": [{"lane": "north", "state": "normal", "fault": None, "points": ["in"]}],
    "readers": [],
    "snapshot": None,
    "ledger": {"last_seq": 0, "fault": None},
}
VERDICT: dict[str, Any] = {
    "at": "2026-11-22T10:00:00+00:00",
    "lane": "north",
    "point": "in",
    "verdict": "granted",
    "flags": [],
    "language": "en",
    "message": "Welcome." + "!" * 2000,
}


BIG = 16_000_000
"""More than the kernel holds for a connection."""


class Broken(Pages):
    """With a page that has a fault, and a big one."""

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_get("/broken", self.broken)
        app.router.add_get("/big", self.big)
        return app

    async def broken(self, _: web.Request) -> web.Response:
        raise ZeroDivisionError("the secret of the machine")

    async def big(self, _: web.Request) -> web.Response:
        return web.Response(body=bytes(BIG))


class Served:
    def __init__(self, port: int, counts: Counts, gate: Socket) -> None:
        self.port, self.counts, self.gate = port, counts, gate

    async def connect(self, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request)
        return reader, writer

    async def ask(self, path: str) -> bytes:
        """All of an answer."""
        reader, writer = await self.connect(
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        )
        try:
            async with asyncio.timeout(20):
                return await reader.read()
        except ConnectionError:  # as good as closed
            return b""
        finally:
            writer.close()

    def count(self, name: str) -> float:
        return self.counts.registry.get_sample_value(name) or 0


@asynccontextmanager
async def serving(folder: Path, limits: Limits) -> AsyncIterator[Served]:
    """The pages of a gate whose socket is real."""
    path = folder / "sync.sock"
    calls: dict[str, Any] = {
        "status": lambda _: STATUS,
        "events": lambda _: {"events": []},
    }
    gate = Socket("sync", calls, {"gateway": "north", "version": "0", "epoch": 1}, print)
    await gate.listen(path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    counts = Counts()
    pages = Broken(lambda s: _Gate(path, s), counts, central=False, socket=path, lanes=["north"])
    task = asyncio.create_task(serve(pages, ("127.0.0.1", port), limits))
    served = Served(port, counts, gate)
    try:
        while True:
            with contextlib.suppress(OSError):
                await served.ask("/session")
                break
            await asyncio.sleep(0.01)
        yield served
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate.close()
        await asyncio.sleep(0.02)


def test_who_says_nothing_makes_room(tmp_path: Path) -> None:
    """Beyond its number a connection is closed at once; one that brings no whole request in time is closed,
    and then there is room again."""

    async def run() -> None:
        async with serving(tmp_path, Limits(idle=0.5, connections=10)) as served:
            held = [await served.connect(b"" if n % 2 else b"GET / HT") for n in range(10)]
            assert await served.ask("/session") == b""
            async with asyncio.timeout(20):
                for reader, _ in held:
                    assert await reader.read() == b""
            assert (await served.ask("/session")).startswith(b"HTTP/1.1 200")
            for _, writer in held:
                writer.close()

    asyncio.run(run())


def test_who_does_not_read_an_answer_is_cut_off(tmp_path: Path) -> None:
    """An answer of sixteen megabytes that nobody reads is given up in time, and holds up nobody."""

    async def run() -> None:
        async with serving(tmp_path, Limits(idle=60, read=0.3, connections=2)) as served:
            with socket.socket() as slow:
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                slow.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(slow, ("127.0.0.1", served.port))
                await loop.sock_sendall(slow, b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await served.ask("/session")).startswith(b"HTTP/1.1 200")
                # With the second connection that there may be, it is seen that the first one is gone.
                _, held = await served.connect(b"GET /session HTTP/1.1\r\n")
                until = loop.time() + 20
                while not await served.ask("/session"):
                    assert loop.time() < until
                held.close()
                got = 0
                with contextlib.suppress(ConnectionError):
                    while data := await loop.sock_recv(slow, 65536):
                        got += len(data)
                assert got < BIG
            assert (await served.ask("/session")).startswith(b"HTTP/1.1 200")

    asyncio.run(run())


def test_a_display_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    """Verdicts by the thousand: the display that reads has each, the one that does not is cut off and
    counted, and what waits for it is bounded."""

    async def run() -> None:
        async with serving(tmp_path, Limits()) as served:
            request = b"GET /display/north/events HTTP/1.1\r\nHost: a\r\n\r\n"
            _, slow_writer = await served.connect(request)
            good, good_writer = await served.connect(request)
            await until(lambda: served.count("gateway_web_streams") == 2 and served.gate.watched)
            slow_writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow_writer.transport.pause_reading()  # type: ignore[attr-defined]
            told = seen = 0
            async with asyncio.timeout(40):
                while not served.count("gateway_web_streams_cut_total"):
                    for _ in range(10):
                        served.gate.tell("verdict", VERDICT)
                        told += 1
                    while seen < told:
                        seen += (await good.readuntil(b"}\n\n")).count(b'"welcome"')
            await until(lambda: served.count("gateway_web_streams") == 1)
            assert served.count("gateway_web_streams_cut_total") == 1
            assert told * len(VERDICT["message"]) < 20_000_000
            served.gate.tell("verdict", VERDICT)
            assert b'"welcome"' in await good.readuntil(b"}\n\n")
            slow_writer.close()
            good_writer.close()

    asyncio.run(run())


def test_a_gate_that_stood_still_answers_again(tmp_path: Path) -> None:
    """A step in which the process stood still is not held against its clients: they wait a second, and not
    nine times as long as it stood."""

    async def run() -> None:
        gate = Socket("sync", {"stand": lambda _: time.sleep(3)}, {}, print)
        await gate.listen(tmp_path / "sync.sock")
        reader, writer = await asyncio.open_unix_connection(tmp_path / "sync.sock")
        writer.write(b'{"call":"stand"}\n{"call":"watch"}\n')
        async with asyncio.timeout(15):
            while b"watching" not in await reader.readline():
                pass
        writer.close()
        gate.close()
        await asyncio.sleep(0.02)

    asyncio.run(run())


def test_a_fault_of_ours_is_told_in_a_line(tmp_path: Path) -> None:
    """A page with a fault answers 500 with all headers, and nothing of what was wrong."""

    async def run() -> None:
        async with serving(tmp_path, Limits()) as served:
            said = await served.ask("/broken")
            assert said.startswith(b"HTTP/1.1 500")
            assert b"frame-ancestors 'none'" in said
            assert b"no-store" in said
            for told in (b"secret", b"ZeroDivision", b"Traceback", b".py", b"aiohttp"):
                assert told not in said
            assert (await served.ask("/session")).startswith(b"HTTP/1.1 200")

    asyncio.run(run())
