"""Server-sent events (WHATWG HTML, 9.2) for many browsers at once: bounded in number, and each in memory.

Who does not read is cut off; the browser comes back by itself, and is told anew how everything is.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from aiohttp import HttpVersion11, web

from gateway.sync.counts import Counts

MOST = 1024
"""Streams at once."""
_ALIVE = 15.0
"""Seconds after which something is said, so that proxies keep the connection and browsers know of it."""
_EARLY = 64
"""Events that may come before the head of the answer is written."""
_UNREAD = 32 << 10
"""Bytes that may wait for one browser, besides what the kernel holds."""
_KERNEL = 16 << 10

_PING = b"event: alive\ndata: 1\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """An event with this as its data."""
    return b"data: " + orjson.dumps(data) + b"\n\n"


class Stream:
    """What one browser is told. Events go straight to its connection: with a task for each that waits,
    a verdict would be late at a thousand of them."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._early: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._chunked = True

    def open(self, transport: asyncio.Transport, *, chunked: bool) -> None:
        """The head is written. ``chunked``: each event is a chunk of RFC 9112, 7.1."""
        self._transport, self._chunked = transport, chunked
        early, self._early = self._early, []
        for data in early:
            self.put(data)

    def put(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
            if len(self._early) > _EARLY:
                self.ended.set()
        elif self.unread > _UNREAD:
            self.ended.set()
        elif not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    @property
    def unread(self) -> int:
        """Bytes that wait for the kernel to take them."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()


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
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        transport = request.transport
        self._open.add(stream)
        self._counts.streams.set(len(self._open))
        try:
            if transport is None:
                return response
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL)
            await response.prepare(request)
            await response.write(b"".join((b"retry: 1000\n\n", *first)))
            stream.open(transport, chunked=request.version >= HttpVersion11)
            await self._keep(stream)
            self._counts.streams_cut.inc()
            transport.abort()  # what it has not read yet would keep it open
        except ConnectionError:
            pass
        finally:
            self._open.discard(stream)
            self._counts.streams.set(len(self._open))
        return response

    async def _keep(self, stream: Stream) -> None:
        """Until it is ended, or has read nothing between two signs of life."""
        lagged = False
        while not stream.ended.is_set():
            try:
                async with asyncio.timeout(_ALIVE):
                    await stream.ended.wait()
            except TimeoutError:
                if stream.unread and lagged:
                    return
                lagged = stream.unread > 0
                stream.put(_PING)

    def close(self) -> None:
        """End them all: the sync stops."""
        for stream in tuple(self._open):
            stream.ended.set()
