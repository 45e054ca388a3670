"""Server-sent events (WHATWG HTML, 9.2) for many browsers at once: bounded in number, and each in memory.

Who does not read is cut off; the browser comes back by itself, and is told anew how everything is.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from aiohttp import web

from gateway.sync.counts import Counts

MOST = 1024
"""Streams at once."""
_ALIVE = 15.0
"""Seconds after which something is said, so that proxies keep the connection and browsers know of it."""
_WAITING = 64
"""Events that may wait for one browser."""
_UNREAD = 32 << 10
"""Bytes that may wait for one browser, besides what the kernel holds."""
_KERNEL = 16 << 10

_PING = b"event: alive\ndata: 1\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """An event with this as its data."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class Stream:
    """What one browser is still to be told."""

    def __init__(self) -> None:
        self.cut = False
        self._waiting: deque[bytes] = deque()
        self._more = asyncio.Event()

    def put(self, data: bytes) -> None:
        if len(self._waiting) >= _WAITING:
            self.end()
            return
        self._waiting.append(data)
        self._more.set()

    def end(self) -> None:
        """Cut it off."""
        self.cut = True
        self._waiting.clear()
        self._more.set()

    async def next(self) -> bytes:
        """Everything that waits, or a sign of life; b"" when it is cut off."""
        if not self._more.is_set():
            try:
                async with asyncio.timeout(_ALIVE):
                    await self._more.wait()
            except TimeoutError:
                return _PING
        self._more.clear()
        data = b"".join(self._waiting)
        self._waiting.clear()
        return data


class Streams:
    """All streams of this process."""

    def __init__(self, counts: Counts, most: int = MOST) -> None:
        self._counts = counts
        self._most = most
        self._open: set[Stream] = set()

    @property
    def full(self) -> bool:
        return len(self._open) >= self._most

    async def serve(self, request: web.Request, stream: Stream, first: Iterable[bytes]) -> web.StreamResponse:
        """Tell this browser ``first`` and then what is put into the stream, until either side ends it."""
        for data in (b"retry: 1000\n\n", *first):
            stream.put(data)
        self._open.add(stream)
        self._counts.streams.set(len(self._open))
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        transport = request.transport
        try:
            if transport is None:
                return response
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL)
            await response.prepare(request)
            lagged = False
            while data := await stream.next():
                unread = transport.get_write_buffer_size()
                if unread > _UNREAD or (unread and lagged and data is _PING):
                    break
                lagged = unread > 0
                await response.write(data)
            self._counts.streams_cut.inc()
            transport.abort()  # what it has not read yet would keep it open
        except ConnectionError:
            pass
        finally:
            self._open.discard(stream)
            self._counts.streams.set(len(self._open))
        return response

    def close(self) -> None:
        """End them all: the sync stops."""
        for stream in tuple(self._open):
            stream.end()
