"""The HTTP server under the pages: headers on every answer, and clients that are slow, many or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from gateway import log
from gateway.sync.streams import MOST as MOST_STREAMS
from gateway.sync.web import Pages

HEADERS = {
    # Everything comes from here; no script and no style stands in a page; nobody puts a page into a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "gateway",
}
MOST_OTHERS = 128
"""Connections besides those of the streams."""
_FILES = 256
"""File descriptors that the rest of the process may need."""
_AGAIN = 10.0
"""Seconds until an address that is in use is tried again."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client is given."""

    idle: float = 20.0
    """Seconds in which a connection must bring a request, and the next one."""
    read: float = 20.0
    """Seconds in which an answer must have been read."""
    connections: int = MOST_STREAMS + MOST_OTHERS


class _Handler(web.RequestHandler):
    """One connection."""

    __slots__ = ("_answers", "_server")

    def __init__(self, server: _Server, manager: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=server.limits.idle,
            lingering_time=1.0,
            auto_decompress=False,
            debug=False,
        )
        self._server = server
        self._answers = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._server.connections += 1
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._server.connections -= 1
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What aiohttp finds wrong, and faults of ours: in a line, whatever they are."""
        if status >= 500:
            log.logger("web").error("internal error", path=request.path[:100], exc_info=exc)
        text = "That did not work; the journal says why.\n" if status >= 500 else "That is no HTTP request.\n"
        response = web.Response(status=status, text=text, headers=HEADERS)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        transport, limit = self.transport, self._server.limits.read
        self._answers += 1
        if transport is not None:
            self._loop.call_later(limit, self._abandon, transport, self._answers)
        try:
            async with asyncio.timeout(limit):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            return resp, True

    def _abandon(self, transport: asyncio.Transport, answer: int) -> None:
        """What it has not read by now would keep the connection, also one that is closed already."""
        if answer == self._answers and transport.get_write_buffer_size():
            transport.abort()


class _Full(asyncio.Protocol):
    """For who comes when everything is taken."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.abort()  # type: ignore[attr-defined]


class _Server:
    """As many connections as there are descriptors for."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.connections = 0
        self._most = min(limits.connections, _room() - _FILES)

    def factory(self, manager: Any, loop: asyncio.AbstractEventLoop) -> Callable[[], asyncio.Protocol]:
        def make() -> asyncio.Protocol:
            return _Full() if self.connections >= self._most else _Handler(self, manager, loop)

        return make


def _room() -> int:
    """File descriptors that this process may have: as many as it is allowed, within reason."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_STREAMS + MOST_OTHERS + _FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


@web.middleware
async def _plain(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Faults in a line of text."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.content_type == "application/json" or error.status < 400:
            raise
        text = error.text if error.text and not error.text.startswith(str(error.status)) else error.reason
        headers = {n: error.headers[n] for n in ("Allow", "Retry-After") if n in error.headers}
        return web.Response(status=error.status, text=text.rstrip() + "\n", headers=headers)


async def _headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


async def serve(
    pages: Pages,
    address: tuple[str, int],
    limits: Limits | None = None,
    tried: Callable[[], None] = lambda: None,
) -> None:
    """Until cancelled. An address that cannot be listened at is told, and tried again: the rest of the sync
    matters more than its pages. ``tried`` is called when it is listened at, or was tried in vain once."""
    app = pages.app()
    app.middlewares.append(_plain)
    app.on_response_prepare.append(_headers)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    loop = asyncio.get_running_loop()
    watching = loop.create_task(pages.watch.run())
    listening: asyncio.Server | None = None
    try:
        listening = await _listen(_Server(limits or Limits()).factory(runner.server, loop), address, tried)
        tried()
        addresses = [sock.getsockname() for sock in listening.sockets]
        log.logger("web").info("pages", address=[f"{a[0]}:{a[1]}" for a in addresses])
        await watching
    finally:
        watching.cancel()
        if listening is not None:
            listening.close()
        await runner.cleanup()


async def _listen(
    factory: Callable[[], asyncio.Protocol], address: tuple[str, int], failed: Callable[[], None]
) -> asyncio.Server:
    loop, told = asyncio.get_running_loop(), False
    while True:
        try:
            return await loop.create_server(factory, *address, backlog=MOST_OTHERS)
        except OSError as error:
            if not told:
                told = True
                log.logger("web").error(
                    "the pages cannot be served; tried again every 10 s",
                    listen=f"{address[0]}:{address[1]}",
                    reason=error.strerror,
                    remedy="set [web] listen to an address that is free",
                )
                failed()
            await asyncio.sleep(_AGAIN)
