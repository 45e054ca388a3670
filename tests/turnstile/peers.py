"""Boards at the other end of a pty, and a listener for what relays tell."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

from gateway.turnstile.relay import RelayCallbacks


class Peer:
    """A board on a pty: takes whole commands of ``size`` bytes (0: lines ending in CR), answers each with
    ``answer(command)``. The path that the gateway opens is a symbolic link, like those that udev makes."""

    def __init__(self, link: Path, size: int, answer: Callable[[bytes], bytes] = lambda _: b"") -> None:
        self.heard: list[tuple[float, bytes]] = []
        self._size = size
        self._answer = answer
        self._master, slave = os.openpty()
        # Raw before anybody writes, or the line discipline would echo and translate.
        tty.setraw(slave)
        link.unlink(missing_ok=True)
        link.symlink_to(os.ttyname(slave))
        os.close(slave)
        self._stop_r, self._stop_w = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def commands(self) -> list[bytes]:
        return [command for _, command in self.heard]

    def unplug(self) -> None:
        """The board is pulled out: the master side closes."""
        if self._thread.is_alive():
            os.write(self._stop_w, b"x")
            self._thread.join()
            for fd in (self._master, self._stop_r, self._stop_w):
                os.close(fd)

    def _run(self) -> None:
        data = b""
        poller = select.poll()
        poller.register(self._stop_r, select.POLLIN)
        poller.register(self._master, select.POLLIN)
        while True:
            events = dict(poller.poll())
            if self._stop_r in events:
                return
            try:
                data += os.read(self._master, 100)
            except OSError:
                # Nobody has the slave open at the moment.
                time.sleep(0.005)
                continue
            while (end := data.find(b"\r") + 1 if self._size == 0 else self._size) and len(data) >= end:
                command, data = data[:end], data[end:]
                self.heard.append((time.monotonic(), command))
                os.write(self._master, self._answer(command))


class Told:
    """What a relay told."""

    def __init__(self) -> None:
        self.states: list[tuple[bool, str]] = []
        self.failed: list[str] = []
        self.pulsed: list[int] = []
        self.callbacks = RelayCallbacks(
            lambda up, reason: self.states.append((up, reason)), self.failed.append, self.pulsed.append
        )

    @property
    def ups(self) -> list[bool]:
        return [up for up, _ in self.states]


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; the test's own time-out ends a wait in vain."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in threads and kernels
            await asyncio.sleep(0.005)
