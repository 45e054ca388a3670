"""The way to the gate: its socket is spoken with a blocking client, in threads that hold up nothing.

The courier passes in what connects (``control.Client``); here is what is needed of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Away(Exception):
    """No gate answers. The message says why."""


class Refused(Exception):
    """The gate refused a call, with a word for programs."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Gate(Protocol):
    """A connection to the gate. Calls raise Away and Refused."""

    def call(self, name: str, **arguments: Any) -> Any: ...

    def send_fd(self, name: str, fd: int, **arguments: Any) -> Any: ...

    def close(self) -> None: ...


Connect = Callable[[float], Gate]
"""Connects, with a time-out in seconds for each step of each call. Raises Away."""


async def in_thread(work: Callable[[], T]) -> T:
    """Run something that blocks. Its thread is a daemon: a stop of the process does not wait for a name
    server or a gate that does not answer, as it would for the threads of an executor."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody asks any more
            loop.call_soon_threadsafe(finish, result, failed)

    Thread(target=run, name="sync", daemon=True).start()
    return await done


_SPARE = 2
"""Connections that are kept while they are not used: a loop makes at most two calls at a time."""


class Link:
    """Connections to the gate, for one loop of the courier; made when needed and again when they broke."""

    def __init__(self, connect: Connect, timeout: float) -> None:
        self._connect = connect
        self._timeout = timeout
        self._spare: list[Gate] = []
        self._closed = False
        self._lock = Lock()

    async def call(self, name: str, **arguments: Any) -> Any:
        """Raises Away and Refused."""
        return await in_thread(lambda: self._work(lambda gate: gate.call(name, **arguments)))

    async def send_fd(self, name: str, fd: int, **arguments: Any) -> Any:
        """A call that hands over an open file. Raises Away and Refused."""
        return await in_thread(lambda: self._work(lambda gate: gate.send_fd(name, fd, **arguments)))

    def _work(self, do: Callable[[Gate], Any]) -> Any:
        # Taken out while it is used: a call that was given up halfway leaves no half-read connection behind.
        with self._lock:
            gate = self._spare.pop() if self._spare else None
        if gate is None:
            gate = self._connect(self._timeout)
        try:
            result = do(gate)
        except Refused:
            self._keep(gate)
            raise
        except BaseException:
            gate.close()
            self._drop_spare()  # of the same gate, which is gone
            raise
        self._keep(gate)
        return result

    def _drop_spare(self) -> None:
        with self._lock:
            spare, self._spare = self._spare, []
        for gate in spare:
            gate.close()

    def _keep(self, gate: Gate) -> None:
        with self._lock:
            if len(self._spare) < _SPARE and not self._closed:
                self._spare.append(gate)
                return
        gate.close()

    def close(self) -> None:
        """Let go of the connections; one that is in use goes when its call ends."""
        with self._lock:
            self._closed = True
        self._drop_spare()
