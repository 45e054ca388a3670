"""The sync's pages: ``/metrics`` for Prometheus, ``/health``, the visitors' displays and the status page.

The gate's part of the metrics is asked for at each scrape, for at most a second, and left out where it does
not come: an old number that looks like a new one is worse than none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.exposition import generate_latest

from gateway.sync.counts import Counts
from gateway.sync.display import Display
from gateway.sync.link import Away, Connect, Link, Refused
from gateway.sync.status import Status, same_site
from gateway.sync.streams import Streams
from gateway.sync.watching import Watch

_SCRAPE = 1.0
"""Seconds for which the gate is asked."""
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_MOST_BODY = 1024

_Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pages:
    """What the pages say."""

    def __init__(
        self,
        connect: Connect,
        counts: Counts,
        *,
        central: bool,
        socket: Path,
        lanes: Sequence[str] = (),
        texts: Mapping[str, Mapping[str, str]] | None = None,
        shuts: bool = False,
    ) -> None:
        """``central``: whether one is configured; ``socket``: the gate's, on which it tells verdicts;
        ``lanes``: their names; ``texts``, the venue's own, and ``shuts``: see ``Display``."""
        self._connect = connect
        self._counts = counts
        self._central = central
        self.watch = Watch(socket)
        self._streams = Streams(counts)
        self._display = Display(self.watch, self._streams, lanes, texts or {}, shuts=shuts)
        self._status = Status(self.watch, self._streams, connect, counts, central=central)
        folder = resources.files("gateway.sync") / "static"
        self._files = {each.name: each.read_bytes() for each in folder.iterdir() if _type(each.name)}

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_MOST_BODY)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/health", self.health)
        app.router.add_get("/display/{lane}", self.display)
        app.router.add_get("/display/{lane}/events", self._stream(self._display.events))
        app.router.add_get("/", self._file("status.html"))
        app.router.add_get("/events", self._stream(self._status.events))
        app.router.add_get("/session", self._status.session)
        app.router.add_post("/login", self._status.login)
        app.router.add_post("/logout", self._status.logout)
        app.router.add_post("/act", self._status.act)
        for name in self._files:  # these, and nothing that a path could lead to
            if not name.endswith(".html"):
                app.router.add_get(f"/static/{name}", self._file(name))
        app.on_shutdown.append(self._shutdown)
        return app

    async def _shutdown(self, _: web.Application) -> None:
        self._streams.close()
        self._status.close()

    def _file(self, name: str) -> _Answer:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(body=self._files[name], content_type=_type(name), charset="utf-8")

        return answer

    async def display(self, request: web.Request) -> web.StreamResponse:
        self._lane(request)
        return await self._file("display.html")(request)

    def _lane(self, request: web.Request) -> None:
        lane = request.match_info.get("lane")
        if lane is not None and not self._display.knows(lane):
            raise web.HTTPNotFound(text="There is no lane of this name; see [[lane]] in the configuration.\n")

    def _stream(self, serve: _Answer) -> _Answer:
        """A stream, where there is room for one more, and for our own pages alone."""

        async def answer(request: web.Request) -> web.StreamResponse:
            self._lane(request)
            if not same_site(request):
                self._counts.web_refused.labels("cross_site").inc()
                raise web.HTTPForbidden(text="This came from another site.\n")
            if self._streams.full:
                self._counts.web_refused.labels("too_many").inc()
                raise web.HTTPServiceUnavailable(
                    text="Too many pages are open; see docs/pages.md.\n", headers={"Retry-After": "5"}
                )
            return await serve(request)

        return answer

    async def metrics(self, _: web.Request) -> web.Response:
        gate = await self._gate()
        self._counts.gate_up.set(gate is not None)
        # No family is on both sides: the gate exports no collectors of the process (gateway.metrics).
        body = (gate or b"") + generate_latest(self._counts.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(self, _: web.Request) -> web.Response:
        """503 while the gate does not answer. A central that is away is told, and is no reason to restart
        anything: the gate admits without it."""
        up = await self._gate() is not None
        body: dict[str, object] = {"gate": up, "central": None}
        if self._central:
            last = self._counts.registry.get_sample_value("gateway_sync_last_success_timestamp_seconds")
            answers = self._counts.registry.get_sample_value("gateway_sync_up") == 1
            body["central"] = {
                "up": answers,
                "last_success": last or None,
                "trouble": self._counts.trouble,
            }
        return web.json_response(body, status=200 if up else 503)

    async def _gate(self) -> bytes | None:
        link = Link(self._connect, _SCRAPE)
        try:
            async with asyncio.timeout(_SCRAPE):
                text: str = (await link.call("metrics"))["text"]
                return text.encode()
        except (Away, Refused, TimeoutError):
            return None
        finally:
            link.close()


def _type(name: str) -> str:
    return _TYPES.get(Path(name).suffix, "")
