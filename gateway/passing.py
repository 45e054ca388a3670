"""Unix sockets that take file descriptors (SCM_RIGHTS, unix(7)) and never wait for them.

asyncio reads with recv(2). The kernel then drops descriptors that came along, within that call: it is the
last close of whatever they are, and that may wait. A TCP socket with SO_LINGER and unsent bytes waits for as
long as its sender said (measured: recv(2) of one byte took 3.2 s). So nobody could be let in while a hostile
client wanted so. Here descriptors are always taken out of what comes; and they, and connections with whatever
is unread in them, are closed in threads of their own.
"""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

_MOST = 253
"""Descriptors that Linux lets one message have (SCM_MAX_FD)."""
_ROOM = socket.CMSG_SPACE(_MOST * array.array("i").itemsize)
_HANGING = 256
"""Descriptors that are to be closed and still open, from which on the clients must be hostile: more than all
that are connected can have of their own, and few enough to leave others (RLIMIT_NOFILE is often 1024)."""


class Closer:
    """Closes descriptors without waiting. ``on_hanging`` is called when many do not come to an end."""

    def __init__(self, on_hanging: Callable[[], None]) -> None:
        self._on_hanging = on_hanging
        self._open = 0
        self._lock = threading.Lock()

    def close(self, fds: Sequence[int]) -> None:
        if not fds:
            return
        with self._lock:
            before = self._open
            self._open += len(fds)
        threading.Thread(target=self._close, args=(fds,), name="close", daemon=True).start()
        if before <= _HANGING < before + len(fds):
            self._on_hanging()

    def _close(self, fds: Sequence[int]) -> None:
        for fd in fds:
            os.close(fd)
            with self._lock:
                self._open -= 1


class Connection(socket.socket):
    """The end of a connection that was accepted. What came with the bytes lies in ``fds``."""

    def __init__(self, fileno: int, closer: Closer) -> None:
        super().__init__(fileno=fileno)
        self._closer = closer
        self.fds: list[int] = []

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data, ancillary, _, _ = self.recvmsg(size, _ROOM, flags | socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self.fds += fds
        return data

    def close(self) -> None:
        fds, self.fds = self.fds, []
        if self.fileno() >= 0:
            fds.append(self.detach())
        self._closer.close(fds)


class Listening(socket.socket):
    """A socket that listens. What it accepts is in ``accepted``, by number, until somebody takes it out."""

    def __init__(self, closer: Closer, handed: socket.socket | None = None) -> None:
        """``handed``: a socket that listens already, which is taken over."""
        if handed is None:
            super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            super().__init__(fileno=handed.detach())
        self.setblocking(False)
        self._closer = closer
        self.accepted: dict[int, Connection] = {}

    def accept(self) -> tuple[socket.socket, Any]:
        plain, address = super().accept()
        connection = Connection(plain.detach(), self._closer)
        self.accepted[connection.fileno()] = connection
        return connection, address

    def close(self) -> None:
        if self.fileno() >= 0:
            self._closer.close([self.detach()])
