"""When the gate tells systemd that it is alive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.configload import load
from gateway.daemon import Daemon
from tests.e2e.rig import WAIT, Site

MEMORY = {"driver": "memory"}


def opened(path: str) -> int:
    """The descriptor by which this process has a device open."""
    [fd] = [
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{name}") == os.path.realpath(path)
    ]
    return fd


def test_a_reader_that_is_stuck_starves_the_watchdog_and_the_ledger_does_not(
    site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fed while all is well, and while the ledger cannot be written; no more from when a scanner's bytes stay
    unread, and again once they are read."""
    here = site(({"name": "north", "relay": MEMORY},))
    scanner = here.scanners["in"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def told() -> list[bytes]:
            found = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.append(systemd.recv(4096))
            return found

        async def until(holds: Callable[[], bool]) -> None:
            end = time.monotonic() + WAIT
            while not holds():
                assert time.monotonic() < end, "in vain"
                await asyncio.sleep(0.01)

        async def rounds(count: int) -> None:
            """So many times the gate saw to its house."""
            for _ in range(count):
                before = daemon._timer
                await until(lambda before=before: daemon._timer is not before)  # type: ignore[misc]

        async def run() -> None:
            await daemon.start()
            await until(lambda: all(daemon.up.values()))
            loop = asyncio.get_running_loop()
            told()
            daemon._ledger_fault("the disk is full")
            await rounds(2)
            assert b"WATCHDOG=1" in told()

            fd = opened(daemon.config.readers[0].device)
            loop.remove_reader(fd)
            scanner.scan("CODE")
            await rounds(3)
            told()
            await rounds(2)
            assert b"WATCHDOG=1" not in told()

            loop.add_reader(fd, daemon.readers["in"]._readable)
            await rounds(3)
            assert b"WATCHDOG=1" in told()

        daemon = Daemon(load(here.config), signals=False)
        with contextlib.closing(daemon):
            asyncio.run(run())
