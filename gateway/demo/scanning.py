"""What stands around the demo's gate: virtual scanners, and a line to its socket for administrators."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import termios
import tty
from pathlib import Path
from typing import Any

import orjson

Json = dict[str, Any]


class Pty:
    """A virtual serial scanner: what is written here, the serial reader reads at ``device``."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.device = os.ttyname(self._slave)

    async def scan(self, code: str) -> None:
        """Send a code, as fast as it is read."""
        data = code.encode(errors="surrogateescape") + b"\r"
        while data:
            try:
                data = data[os.write(self._master, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.005)

    def free(self) -> None:
        """Its reader is gone, killed perhaps. A real port then forgets that it was used by one alone."""
        fcntl.ioctl(self._slave, termios.TIOCNXCL)

    def close(self) -> None:
        os.close(self._master)
        os.close(self._slave)


class GateLine:
    """The admin socket of a gate (docs/control.md) on the loop: calls, and verdicts as they are told. A gate
    that was started again is connected to again; a call waits for that, and one that was open is repeated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.verdicts: asyncio.Queue[Json] = asyncio.Queue()
        self._connected = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._id = 0
        self._task = asyncio.create_task(self._serve())

    async def call(self, name: str, **arguments: Any) -> Any:
        """The result of a call. Only for what a gate does not refuse, and what may be done twice."""
        while True:
            await self._connected.wait()
            assert self._writer is not None
            self._id += 1
            answer = self._open[self._id] = asyncio.get_running_loop().create_future()
            self._writer.write(orjson.dumps({"id": self._id, "call": name, **arguments}) + b"\n")
            with contextlib.suppress(ConnectionResetError):
                return await answer

    async def status(self) -> Json:
        status: Json = await self.call("status")
        return status

    def forget(self) -> None:
        """Nobody waits for the verdicts so far."""
        while not self.verdicts.empty():
            self.verdicts.get_nowait()

    async def _serve(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, self._writer = await asyncio.open_unix_connection(self._path, limit=1 << 24)
                try:
                    await self._read(reader)
                finally:
                    self._lost()
            await asyncio.sleep(0.05)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        assert self._writer is not None
        await reader.readline()  # its greeting
        self._writer.write(b'{"call":"watch"}\n')
        self._connected.set()
        while line := await reader.readline():
            message = orjson.loads(line)
            if "verdict" in message:
                self.verdicts.put_nowait(message["verdict"])
            elif (asked := self._open.pop(message.get("id"), None)) is not None and not asked.done():
                asked.set_result(message.get("result"))

    def _lost(self) -> None:
        self._connected.clear()
        assert self._writer is not None
        self._writer.close()
        for asked in self._open.values():
            if not asked.done():
                asked.set_exception(ConnectionResetError())
        self._open.clear()

    def close(self) -> None:
        self._task.cancel()
