"""``gateway central serve``: the central's process, from its lock on the folder to its last answer.

Stop in order: gateways that wait are answered at once, no new connection is taken, what is under way is
finished, then the store is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from aiohttp import web
from sqlalchemy.exc import SQLAlchemyError

from gateway import __version__
from gateway import log as gateway_log
from gateway.central import admin, adminclient, files, server
from gateway.central.faults import CentralError
from gateway.central.server import Central
from gateway.central.store import Store
from gateway.central.web import guard
from gateway.host import notify, wall

ADDRESS = "address"
"""The file in the folder with the URL under which the central listens, for those who start it on port 0."""
_KEEP_ALIVE_S = 75
"""A connection without a request; longer than a poll waits, so that a gateway keeps its own."""
_STOP_S = 5
_TEND_S = 60
_COMPACT_S = 24 * 3600


class Unservable(Exception):
    """It cannot be served like this; the message says what to do."""


def serve(options: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT. Raises the command line's CentralError where it cannot."""
    writer = gateway_log.start(options.log_level)
    try:
        return asyncio.run(_serve(options))
    except (Unservable, CentralError) as error:
        raise adminclient.CentralError(str(error)) from error
    finally:
        writer.close()


async def _serve(options: argparse.Namespace) -> int:
    log = gateway_log.logger("central")
    host, port, context = demanded(options)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    directory: Path = options.data
    async with running(
        directory,
        host,
        port,
        context=context,
        database=options.database,
        behind_proxy=options.behind_proxy,
        log=log,
    ) as url:
        token = directory / "admin.token"
        where = f"admin token in {token}" if token.exists() else f"no {token}: use the copy that you kept"
        sys.stdout.write(f"central on {url}, data in {directory}, {where}\n")
        sys.stdout.flush()
        if context is None:
            log.info("plain http: for this machine alone, or behind a proxy with TLS")
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        log.info("stopping")
    return 0


@asynccontextmanager
async def running(
    directory: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    context: ssl.SSLContext | None = None,
    database: str | None = None,
    behind_proxy: bool = False,
    log: structlog.typing.FilteringBoundLogger,
    clock: Callable[[], int] = wall,
) -> AsyncIterator[str]:
    """A central that serves while the block lasts; gives its URL. Raises CentralError and Unservable."""
    lock = _lock(directory)
    try:
        store = await asyncio.to_thread(Store.open, directory, database, clock=clock)
        central = Central(store, log=log, database=database, behind_proxy=behind_proxy)
        runner = web.AppRunner(
            application(central),
            access_log=None,
            logger=_quiet(log),
            handler_cancellation=True,  # a poll ends when its gateway has gone
            keepalive_timeout=_KEEP_ALIVE_S,
            auto_decompress=False,
            shutdown_timeout=_STOP_S,
        )
        tending = asyncio.create_task(_tend(central))
        try:
            await runner.setup()
            site = web.TCPSite(runner, host, port, ssl_context=context, backlog=512)
            try:
                await site.start()
            except OSError as error:
                raise Unservable(
                    f"cannot listen on {host}:{port}: {error.strerror}; give another --listen"
                ) from error
            url = _url(runner, host, context)
            files.write(directory / ADDRESS, f"{url}\n".encode())
            for venue in await central.db(store.venues):
                central.downloads.build(venue.id)
            log.info("serving", url=url, version=__version__, directory=str(directory))
            yield url
            await site.stop()
        finally:
            tending.cancel()
            central.polls.stop()
            await runner.cleanup()
            await central.close()
            (directory / ADDRESS).unlink(missing_ok=True)
    finally:
        os.close(lock)


def application(central: Central) -> web.Application:
    """Every call of the central, behind the guard."""
    app = web.Application(middlewares=[guard(central.tally, central.log)])
    app.on_response_prepare.append(central.tally.answered)
    app.add_routes(server.routes(central))
    app.add_routes(admin.routes(central))
    return app


async def _tend(central: Central) -> None:
    """The service manager hears of us; once a day what is kept for a time alone is removed."""
    due = 0.0
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(_TEND_S)
        if time.monotonic() >= due:
            due = time.monotonic() + _COMPACT_S
            try:
                await asyncio.to_thread(central.store.compact)
            except SQLAlchemyError as error:
                central.log.error("the log could not be compacted", error=type(error).__name__)


def _url(runner: web.AppRunner, host: str, context: ssl.SSLContext | None) -> str:
    port = runner.addresses[0][1]
    shown = f"[{host}]" if ":" in host else host
    return f"{'http' if context is None else 'https'}://{shown}:{port}"


def _lock(directory: Path) -> int:
    """One server on a folder. Raises Unservable."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unservable(f"--data {directory}: {error.strerror}; give a folder that you may write") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Unservable(
            f"--data {directory}: another central serves it; stop that, or give another"
        ) from None
    return fd


# --- what is asked for on the command line -------------------------------------------------------------


def demanded(options: argparse.Namespace) -> tuple[str, int, ssl.SSLContext | None]:
    """Host, port and TLS. Raises Unservable for plain http that others could listen to."""
    host, port = address(options.listen)
    context = tls(options.tls_cert, options.tls_key)
    if context is None and not options.behind_proxy and not is_loopback(host):
        raise Unservable(
            f"--listen {options.listen} can be reached from outside, and plain http would show every code and"
            " token; give --tls-cert and --tls-key, or say --behind-proxy if a proxy with TLS is before it"
        )
    return host, port, context


def address(listen: str) -> tuple[str, int]:
    """``HOST:PORT``, an IPv6 address in brackets. Raises Unservable."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise Unservable(f"--listen {listen}: must be HOST:PORT, such as 127.0.0.1:9470 or [::1]:9470")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can reach it. A name other than localhost may be anything."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def tls(cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Raises Unservable."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise Unservable("give both --tls-cert and --tls-key, or none")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        what = "no PEM files that belong together" if isinstance(error, ssl.SSLError) else error.strerror
        raise Unservable(f"--tls-cert {cert}, --tls-key {key}: {what}") from error
    return context


class _Told(logging.Handler):
    """What aiohttp says, in our log: in a few words, for it quotes what was sent."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0] if record.exc_info else None
        self._log.warning("a request was not understood", error=None if error is None else error.__name__)


def _quiet(log: structlog.typing.FilteringBoundLogger) -> logging.Logger:
    logger = logging.Logger("gateway.central.http")
    logger.addHandler(_Told(log))
    return logger
