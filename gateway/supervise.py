"""Processes of this program side by side: started in order, started again when they end, stopped in order.

``gateway run`` has the gate and the sync as children, the demo has the central too. A part is ready when it
says so as to systemd (sd_notify(3)): each has a datagram socket for that, so a part need not know whether
systemd or this runs it.

A part that has fed its watchdog once and then does not for ``Part.watchdog`` seconds hangs, and is killed and
started again. systemd's own watchdog is not fed from here: a unit of its own for each part is the better
use of it, and a container has none.

Nothing outlives this process, also after kill -9: each child asks the kernel for SIGKILL when its parent is
gone (prctl(2), PR_SET_PDEATHSIG). A pipe that the child watches would not end one that hangs. The kernel
means the parent's *thread*, so parts are started from the main thread only, which lives as long as the
process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway import log
from gateway.host import notify

WRONG = 2
"""Exit status of a part whose configuration is wrong: to start it again would not help."""
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass
class Part:
    """One child: a command line, and what it is called in the log."""

    name: str
    command: Sequence[str | Path]
    """Read at each start, so that it may be changed for the next one."""
    terminal: bool = False
    """It reads our standard input, and so belongs to our process group: Ctrl-C reaches it directly. Others
    have no input and a group of their own, and are stopped by us alone."""
    log: Path | None = None
    """Where its output and log go, in place of our standard error."""
    watchdog: int = 30
    """Seconds without a word after which it hangs, if it has ever fed its watchdog: a multiple of the time
    between two words of it."""
    patient: bool = True
    """Start it again also where it ends before it was ever ready."""


class PartFailed(Exception):
    """A part cannot be started; to try again would not help."""

    def __init__(self, part: Part, status: int) -> None:
        super().__init__(f"{part.name} ended with {_called(status)} before it was ready")
        self.part, self.status = part, status


def _called(status: int) -> str:
    """An exit status in words."""
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


class _Child:
    """A part's process as it runs. ``ended`` has its exit status (negative: the signal that ended it)."""

    def __init__(self, part: Part, on_ready: Callable[[], None]) -> None:
        assert threading.current_thread() is threading.main_thread()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._on_ready = on_ready
        self._fed: int | None = None
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._notify.bind("")  # a name of the kernel's choice without a file, gone with the socket
        address = self._notify.getsockname()
        with contextlib.ExitStack() as opened:
            output: int = sys.stderr.fileno()
            if part.log is not None:
                output = opened.enter_context(part.log.open("ab")).fileno()
            self.process = subprocess.Popen(
                part.command,
                stdin=None if part.terminal else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**_inherited(), "NOTIFY_SOCKET": "@" + address[1:].decode()},
                process_group=None if part.terminal else 0,
                preexec_fn=_die_with(os.getpid()),
            )
        self._pidfd = os.pidfd_open(self.process.pid)
        self._loop.add_reader(self._pidfd, self._over)
        self._loop.add_reader(self._notify, self._told)

    def _told(self) -> None:
        with contextlib.suppress(BlockingIOError):
            words = self._notify.recv(4096).split(b"\n")
            if b"WATCHDOG=1" in words:
                self._fed = 0
            if b"READY=1" in words:
                self._on_ready()

    def _over(self) -> None:
        self._told()  # it may have been ready for a moment
        self._loop.remove_reader(self._pidfd)
        self._loop.remove_reader(self._notify)
        os.close(self._pidfd)
        self._notify.close()
        self.ended.set_result(self.process.wait())

    def hungry(self, limit: int) -> bool:
        """Whether it has not fed its watchdog for so many of these questions. Asked once a second; counting
        questions and not time, since a terminal's Ctrl-Z stops us and it alike."""
        if self._fed is not None:
            self._fed += 1
        return self._fed is not None and self._fed > limit

    async def stop(self, patience: float) -> None:
        """SIGTERM, and SIGKILL where that does not end it in so many seconds."""
        self.process.terminate()
        try:
            await asyncio.wait_for(asyncio.shield(self.ended), patience)
        except TimeoutError:
            self.process.kill()
            await self.ended


def _inherited() -> dict[str, str]:
    """Our environment without what systemd says to us alone."""
    ours = ("WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    return {name: value for name, value in os.environ.items() if name not in ours}


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does between fork and exec. It takes no lock and imports nothing, so that it is safe also
    where this process has threads."""

    def ask() -> None:
        # The parent may have died before the kernel was asked.
        if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or os.getppid() != parent:
            os._exit(70)

    return ask


class Supervisor:
    """Keeps parts running. ``start`` them one after the other, ``stop`` all at the end.

    ``pause``, ``longest``: seconds before a part that ended is started again; doubled each time, up to the
    longest, and from the first again after it has run for ``steady`` seconds. ``patience``: seconds that a
    part may take to stop. ``on_end`` is told of each end that nobody asked for.
    """

    def __init__(
        self,
        *,
        pause: float = 1.0,
        longest: float = 30.0,
        steady: float = 60.0,
        patience: float = 20.0,
        on_end: Callable[[Part, int], None] = lambda part, status: None,
    ) -> None:
        self._pause, self._longest, self._steady = pause, longest, steady
        self._patience, self._on_end = patience, on_end
        self._log = log.logger("supervisor")
        self._kept: list[tuple[asyncio.Task[None], dict[str, _Child]]] = []

    async def start(self, part: Part) -> None:
        """Start a part and keep it running; comes back when it is ready.

        Raises:
            PartFailed: it ended with 2 before it was ready, or with anything if it is not ``patient``.
            OSError: there is no such program.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        now: dict[str, _Child] = {}
        self._kept.append((asyncio.create_task(self._keep(part, ready, now)), now))
        await ready

    async def _keep(self, part: Part, ready: asyncio.Future[None], now: dict[str, _Child]) -> None:
        """Run a part again and again. ``now``: its present process, for who stops it."""
        loop = asyncio.get_running_loop()

        def is_ready() -> None:
            if not ready.done():
                ready.set_result(None)

        pause = self._pause
        while True:
            began = loop.time()
            try:
                child = now["child"] = _Child(part, is_ready)
            except OSError as error:
                if not ready.done():
                    ready.set_exception(error)
                    return
                self._log.error("cannot be started", of=part.name, reason=str(error), again_in_s=pause)
            else:
                status = await self._watch(part, child)
                if not ready.done() and (status == WRONG or not part.patient):
                    ready.set_exception(PartFailed(part, status))
                    return
                if loop.time() - began >= self._steady:
                    pause = self._pause
                self._log.error("ended", of=part.name, status=_called(status), again_in_s=pause)
                self._on_end(part, status)
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._longest)

    async def _watch(self, part: Part, child: _Child) -> int:
        """Until it ends; its exit status."""
        while not (await asyncio.wait((child.ended,), timeout=1))[0]:
            if child.hungry(part.watchdog):
                self._log.error("hangs, and is killed", of=part.name)
                child.process.kill()
                await child.ended
        return child.ended.result()

    async def stop(self) -> None:
        """Stop what was started, the last first."""
        while self._kept:
            task, now = self._kept[-1]
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            child = now.get("child")
            if child is not None and not child.ended.done():
                await child.stop(self._patience)
            self._kept.pop()


async def run(parts: Sequence[Part], supervisor: Supervisor | None = None) -> int:
    """Run parts until SIGTERM or SIGINT; the exit status: 0 after those, 2 where a part's configuration is
    wrong. Says READY=1 when all have said it."""
    supervisor = supervisor or Supervisor()
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    starting = asyncio.create_task(_all(supervisor, parts))
    stop = asyncio.create_task(told.wait())
    try:
        await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stop
        return 0
    except PartFailed as error:
        log.logger("supervisor").error(str(error))
        return WRONG
    finally:
        starting.cancel()
        stop.cancel()
        notify("STOPPING=1")
        await supervisor.stop()


async def _all(supervisor: Supervisor, parts: Sequence[Part]) -> None:
    for part in parts:
        await supervisor.start(part)
    notify("READY=1")
