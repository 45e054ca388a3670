"""The sync's pages: ``/metrics`` for Prometheus and ``/health``.

The gate's part is asked for at each scrape, for at most a second, and left out where it does not come: an old
number that looks like a new one is worse than none.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.exposition import generate_latest

from gateway import log
from gateway.sync.counts import Counts
from gateway.sync.link import Away, Connect, Link, Refused

_SCRAPE = 1.0
"""Seconds for which the gate is asked."""
_AGAIN = 10.0
"""Seconds until an address that is in use is tried again."""


class Pages:
    """What the pages say."""

    def __init__(self, connect: Connect, counts: Counts, *, central: bool) -> None:
        self._connect = connect
        self._counts = counts
        self._central = central
        """Whether one is configured."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1024)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/health", self.health)
        return app

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
        return web.json_response(body, status=200 if up else 503, headers={"Cache-Control": "no-store"})

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


async def serve(pages: Pages, address: tuple[str, int]) -> None:
    """Until cancelled. An address that cannot be listened at is told, and tried again: the rest of the sync
    matters more than its pages."""
    logger, told = log.logger("web"), False
    runner = web.AppRunner(pages.app(), access_log=None, keepalive_timeout=30, shutdown_timeout=0.5)
    await runner.setup()
    try:
        while True:
            try:
                await web.TCPSite(runner, *address).start()
                break
            except OSError as error:
                if not told:
                    told = True
                    logger.error(
                        "the pages cannot be served; tried again every 10 s",
                        listen=f"{address[0]}:{address[1]}",
                        reason=error.strerror,
                        remedy="set [web] listen to an address that is free",
                    )
                await asyncio.sleep(_AGAIN)
        logger.info("pages", address=[f"{a[0]}:{a[1]}" for a in runner.addresses])
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
