"""The sync process, wired: what ``gateway sync`` runs (DESIGN.md 3).

It opens no device and no store, and holds nothing that could be lost: it may be killed at any moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Iterator, Sequence
from datetime import UTC, tzinfo
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from gateway import __version__, control, log
from gateway.cache.ledger_rows import EVENT_COLUMNS, event_json
from gateway.config import CentralConfig, Config
from gateway.host import machine_identity, notify
from gateway.sync import server
from gateway.sync.certificates import note_ends
from gateway.sync.client import MACHINE_FILE, Central, Tokens, tls
from gateway.sync.counts import Counts
from gateway.sync.fetch import Fetch
from gateway.sync.link import Away, Connect, Link, Refused
from gateway.sync.web import Pages
from gateway.sync.worker import Changes, Pace, Sending

_CALL = 30.0
"""Seconds for a call to the gate."""
_BUILD = 3600.0
"""Seconds for the gate to build a snapshot of: millions of cards on a slow card take minutes."""
_WATCHDOG = 5.0
_NOTHING = dict.fromkeys(EVENT_COLUMNS)


class _Loop(Protocol):
    async def run(self) -> None: ...


class _Gate:
    """``control.Client`` as the sync needs it."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._seconds = seconds
        with _translated():
            self._client = control.Client(path, min(seconds, _CALL))

    def call(self, name: str, **arguments: Any) -> Any:
        with _translated():
            return self._client.call(name, timeout=self._seconds, **arguments)

    def send_fd(self, name: str, fd: int, **arguments: Any) -> Any:
        with _translated():
            return self._client.call_with_fd(name, fd, timeout=self._seconds, **arguments)

    def close(self) -> None:
        self._client.close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except control.CallError as error:
        raise Refused(error.code, str(error)) from error
    except control.NoGate as error:
        raise Away("no gate is running here") from error
    except PermissionError as error:
        raise Away("this user may not open the gate's sync_socket") from error
    except (OSError, ValueError) as error:  # ValueError: what came is no JSON
        raise Away("the gate does not answer") from error


def _socket(config: Config) -> Path:
    """The gate's socket for us: where the configuration says, else where the unit says that
    gateway-sync.socket listens, else in the data_dir."""
    told = os.environ.get("GATEWAY_SYNC_SOCKET")
    return config.gateway.sync_socket or (Path(told) if told else config.gateway.data_dir / "sync.sock")


def connect_to(config: Config) -> Connect:
    path = _socket(config)
    return lambda seconds: _Gate(path, seconds)


def event_for_central(columns: Sequence[str], row: Sequence[Any], gateway: str, zone: str) -> dict[str, Any]:
    """An event as docs/protocol.md has it, of a row of the gate's: epoch, digest, columns."""
    epoch, digest, *values = row
    if digest is None:
        seq = values[columns.index("seq")]
        return {"gateway": gateway, "epoch": epoch, "seq": seq, "digest": None, "damaged": True}
    # A gate of another version may have columns that we do not know, or lack some.
    line = event_json({**_NOTHING, **dict(zip(columns, values, strict=False))}, gateway, epoch, _zone(zone))
    line["digest"] = digest
    return line


@lru_cache(maxsize=4)
def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError):
        return UTC


async def serve(config: Config, pace: Pace | None = None) -> int:
    """Carry until SIGTERM or SIGINT; the exit status.

    Raises:
        OSError: a file of [central] or the state_dir cannot be used; the message names it.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    counts, connect = Counts(), connect_to(config)
    pages = Pages(
        connect,
        counts,
        central=config.central is not None,
        socket=_socket(config),
        lanes=[lane.name for lane in config.lanes],
        texts=config.messages,
        shuts=config.gateway.on_ledger_failure == "deny",
    )
    async with contextlib.AsyncExitStack() as closing:
        loops: list[_Loop] = []
        if config.central is not None:
            loops = await _carriers(config, config.central, connect, counts, pace or Pace(), closing)
        tasks = [loop.create_task(each.run()) for each in loops]
        listening = asyncio.Event()
        tasks.append(loop.create_task(server.serve(pages, config.web.address, tried=listening.set)))
        tasks.append(loop.create_task(_alive()))
        stopping = loop.create_task(stop.wait())
        opening = loop.create_task(listening.wait())
        await asyncio.wait((stopping, opening, *tasks), return_when=asyncio.FIRST_COMPLETED)
        opening.cancel()
        notify("READY=1\nSTATUS=carrying" if loops else "READY=1\nSTATUS=pages only: no central")
        log.logger("sync").info(
            "ready",
            version=__version__,
            gateway=config.gateway.id,
            central=None if config.central is None else config.central.url,
        )
        try:
            done, _ = await asyncio.wait((stopping, *tasks), return_when=asyncio.FIRST_COMPLETED)
        finally:
            notify("STOPPING=1")
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
        failed = [error for task in done if task is not stopping and (error := task.exception())]
        if not failed:
            return 0
        # Half a courier is worse than none: the service manager starts us again.
        log.logger("sync").critical("internal error", exc_info=failed[0])
        return 70


async def _alive() -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(_WATCHDOG)


async def _carriers(
    config: Config,
    central: CentralConfig,
    connect: Connect,
    counts: Counts,
    pace: Pace,
    closing: contextlib.AsyncExitStack,
) -> list[_Loop]:
    state_dir = config.state_dir
    make_state_dir(state_dir)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    tokens = Tokens(state_dir, Path(credentials) if credentials else None)
    machine = machine_identity()
    _compare_machine(state_dir, machine)
    try:
        context = tls(central.ca_file, central.client_cert, central.client_key)
    except OSError as error:
        raise OSError(f"[central] ca_file, client_cert or client_key: {error}") from error
    note_ends(context, central.ca_file, central.client_cert, counts.certificates)
    remote = Central(central.url, tokens, machine, counts, context=context)
    closing.push_async_callback(remote.close)
    links = [Link(connect, seconds) for seconds in (_CALL, _CALL, _BUILD)]
    for link in links:
        closing.callback(link.close)
    draw = random.random
    fetch = Fetch(
        links[2],
        remote,
        state_dir,
        counts,
        failed=pace.central(draw),
        away=pace.gate(draw),
        slow=pace.slow(draw),
        random=draw,
    )
    changes = Changes(links[0], remote, fetch, counts, pace, draw)
    return [changes, fetch, Sending(links[1], remote, event_for_central, counts, pace, draw)]


def make_state_dir(path: Path) -> None:
    """Raises OSError, with what to do."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{path}: {error.strerror}; create it: install -d -m 700 {path}, for the user of the sync"
        ) from error


def _compare_machine(state_dir: Path, machine: str) -> None:
    """The central decides about a copied card; here the one who moved it on purpose is told what to do."""
    try:
        noted = (state_dir / MACHINE_FILE).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return
    if noted != machine:
        log.logger("sync").warning(
            "this is another computer than the one that was enrolled: the card was moved or copied",
            remedy="have a code made for this gateway, then: gateway enroll URL CODE",
        )
