"""The gate's unix sockets: how everybody else speaks with the gate (docs/control.md).

One JSON object a line in both directions. Rights come from which socket a client is connected to, not
from who the client says it is: with ``PrivateUsers=yes`` every peer looks like nobody.

A client that is slow, silent or hostile never delays a scan:
- a request is handled in short steps on the loop, and a role may use a tenth of the loop's time: after a
  step that took d, its next one waits for 9 d;
- what a client does not read is bounded: its requests are not read on until it has read its answers, and
  a watcher that lags loses verdicts, not the gate's memory;
- lines, clients and unread bytes have limits; who passes them is cut off and counted;
- a file descriptor is taken where a call asks for one; any other is closed, and whoever sent it is cut off.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, Literal, NamedTuple

import orjson

from gateway.passing import Closer, Connection, Listening

PROTOCOL = 1
MAX_LINE = 1 << 20
MAX_CLIENTS = 32
_UNREAD = 1 << 18
"""Bytes of answers that wait for the client before its next request is read."""
_LAG = 1 << 20
"""Bytes of verdicts that a watcher may leave unread before it loses some."""
_SHARE = 9
"""A role's step of d seconds is followed by this many d for everybody else."""
_MOST_PAUSE = 1.0
"""Seconds at most: no step takes long, so one that did was in a process that stood still, and nobody would be
answered for nine times as long."""
FD_SECONDS = 5.0
"""In which a descriptor that was asked for must come."""

Role = Literal["admin", "sync"]
Call = Callable[[Mapping[str, Any]], Any]
"""A call's handler: arguments to a JSON-able result, or to a generator that yields ``Later`` between short
steps (or ``TakeFd``) and at last the result. Raises ``CallError`` for what the client did wrong. A generator
whose client is gone is closed."""


class Later(NamedTuple):
    """Not done: go on with the next step after so many seconds."""

    seconds: float = 0.0


class TakeFd:
    """Yielded by a handler that needs a file descriptor of its client: it is in ``fd`` then, and the handler
    has to close it. Where none comes, the generator is closed and the call refused."""

    def __init__(self) -> None:
        self.fd: int | None = None
        self._closer: Closer | None = None

    def hand(self, fd: int, closer: Closer) -> None:
        self.fd, self._closer = fd, closer

    def close(self) -> None:
        """Close it without waiting: a hostile one may take for ever to close. Twice does nothing."""
        fd, self.fd = self.fd, None
        if fd is not None and self._closer is not None:
            self._closer.close([fd])


class CallError(Exception):
    """Refused, with a code for programs and a sentence for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Socket:
    """One listening socket with the calls that its role may make."""

    def __init__(
        self,
        role: Role,
        calls: Mapping[str, Call],
        hello: Mapping[str, Any],
        on_dropped: Callable[[str], None],
    ) -> None:
        self.role: Role = role
        self.calls = calls
        self.hello = hello
        self.on_dropped = on_dropped
        self.clients: set[_Client] = set()
        self.free_at = 0.0
        self.closer = Closer(self._hang)
        self.accepted: dict[int, Connection] = {}
        self._server: asyncio.Server | None = None
        self._path: Path | None = None

    async def listen(self, path: Path, handed: socket.socket | None = None) -> None:
        """Listen at a path (an old socket file there is replaced). On a socket that was handed over instead:
        then the path becomes a link to it, so that whoever looks for the gate finds it there all the same.

        Raises:
            OSError: the path cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        listening = self._bound(path) if handed is None else self._linked(path, handed)
        self.accepted = listening.accepted
        self._server = await self._loop.create_unix_server(lambda: _Client(self), sock=listening)

    def _bound(self, path: Path) -> Listening:
        _clear_stale(path)
        listening = Listening(self.closer)
        mask = os.umask(0o117)
        try:
            listening.bind(str(path))
        except OSError as error:
            listening.close()
            reason = error.strerror or error
            raise OSError(
                f"{path}: {reason}; set {self.role}_socket to a short path in a folder that is there"
            ) from error
        finally:
            os.umask(mask)
        self._path = path
        return listening

    def _linked(self, path: Path, handed: socket.socket) -> Listening:
        address = handed.getsockname()
        if address and address != str(path):
            try:
                _clear_stale(path)
                path.symlink_to(address)
            except OSError as error:
                raise OSError(
                    f"{path}: {error.strerror}; leave {self.role}_socket out: the socket is {address}"
                ) from error
            self._path = path
        return Listening(self.closer, handed)

    def _hang(self) -> None:
        """Descriptors of the clients cannot be closed: none are taken any more, or the gate would run out of
        them. Scans go on."""
        self.on_dropped(self.role)
        self._loop.call_soon(self.close)  # not from within a step of one of them

    def tell(self, what: Literal["verdict", "lane"], told: Mapping[str, Any]) -> None:
        """A verdict, or how a lane is now, for everybody who watches."""
        watching = [c for c in self.clients if c.watching]
        if watching:
            line = orjson.dumps({what: told}) + b"\n"
            for client in watching:
                client.tell(line)

    @property
    def watched(self) -> bool:
        return any(c.watching for c in self.clients)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for client in tuple(self.clients):
            client.drop()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _clear_stale(path: Path) -> None:
    """Remove the socket file of a gate that is gone, or its link to one; the lock on the data_dir says that
    none runs."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISSOCK(mode) or stat.S_ISLNK(mode):
            path.unlink()
    except FileNotFoundError:
        pass


class _Client(asyncio.Protocol):
    """One connection. Requests are handled in order, one at a time, in steps."""

    def __init__(self, socket_: Socket) -> None:
        self._socket = socket_
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()
        self._steps: Generator[Any, None, None] | None = None
        self._connection: Connection | None = None
        self._asked: TakeFd | None = None
        """Its descriptor is to come."""
        self._handed: TakeFd | None = None
        """Its descriptor came, and the generator does not know yet."""
        self._patience: asyncio.TimerHandle | None = None
        self._request: Any = None
        self._scheduled = False
        self._pause = 0.0
        self._writable = True
        self.watching = False
        self.lagged = 0
        self._transport: asyncio.Transport | None = None

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connection = self._socket.accepted.pop(transport.get_extra_info("socket").fileno())
        transport.set_write_buffer_limits(high=_UNREAD)
        if len(self._socket.clients) >= MAX_CLIENTS:
            self._write({"error": f"too many clients, at most {MAX_CLIENTS}", "code": "busy"})
            transport.close()
            self._transport = None
            return
        self._socket.clients.add(self)
        self._write({**self._socket.hello, "protocol": PROTOCOL, "role": self._socket.role})

    def connection_lost(self, _: Exception | None) -> None:
        self._socket.clients.discard(self)
        self._transport = None
        self._end()
        self._buffer.clear()

    def data_received(self, data: bytes) -> None:
        assert self._connection is not None
        fds, self._connection.fds = self._connection.fds, []
        if self._asked is not None:
            self._came(data, fds)
            return
        if fds:
            self._socket.closer.close(fds)
            self._socket.on_dropped(self._socket.role)
            self.drop()
            return
        self._buffer += data
        if len(self._buffer) > MAX_LINE and self._buffer.find(b"\n", 0, MAX_LINE) < 0:
            self._socket.on_dropped(self._socket.role)
            self.drop()
            return
        self._schedule()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._schedule()

    # --- one request after the other ---

    def _schedule(self) -> None:
        """See to it that the next step is taken when this role's turn comes."""
        if self._transport is None or self._scheduled or not self._writable or self._asked is not None:
            self._hold()
            return
        if self._steps is None and b"\n" not in self._buffer:
            self._hold()
            return
        self._scheduled = True
        self._hold()
        wait, self._pause = max(self._pause, self._socket.free_at - perf_counter()), 0.0
        self._loop.call_later(max(0.0, wait), self._step)

    def _hold(self) -> None:
        """Read no further while there is enough to do, so that a flood stays in the sender's own buffer."""
        if self._transport is None or self._transport.is_closing():
            return
        # A line that has not ended is read on, up to MAX_LINE: nothing else would ever end the wait.
        enough = len(self._buffer) > _UNREAD and (self._steps is not None or b"\n" in self._buffer)
        if enough or (not self._writable and self._buffer):
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _step(self) -> None:
        self._scheduled = False
        if self._transport is None:
            return
        now = perf_counter()
        if now < self._socket.free_at:  # another client of this role was first
            self._schedule()
            return
        self._work()
        took = perf_counter() - now
        self._socket.free_at = now + took + min(took * _SHARE, _MOST_PAUSE)
        self._schedule()

    def _work(self) -> None:
        try:
            if self._steps is None:
                end = self._buffer.find(b"\n")
                if end < 0:
                    return
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                result = self._start(line)
                if not isinstance(result, Generator):
                    self._answer(result)
                    return
                self._steps = result
            self._handed = None  # if there is one, it is the generator's from here on
            result = next(self._steps)
            if isinstance(result, Later):
                self._pause = result.seconds
            elif isinstance(result, TakeFd):
                self._ask(result)
            else:
                self._end()
                self._answer(result)
        except CallError as error:
            self._end()
            self._refuse(error)

    def _end(self) -> None:
        """The request is over, done or not."""
        if self._patience is not None:
            self._patience.cancel()
        steps, handed = self._steps, self._handed
        self._steps = self._asked = self._handed = self._patience = None
        if handed is not None:
            handed.close()
        if steps is not None:
            steps.close()

    def _ask(self, wanted: TakeFd) -> None:
        if self._buffer:
            raise CallError("bad_request", "send nothing more until the file descriptor is asked for")
        self._asked = wanted
        self._write({"id": self._request, "send_fd": True})
        self._patience = self._loop.call_later(FD_SECONDS, self._came, b"", ())

    def _came(self, data: bytes, fds: Sequence[int]) -> None:
        """What came in the place of the descriptor. A connection on which it was something else is closed:
        what follows could be read as anything."""
        wanted, self._asked = self._asked, None
        assert wanted is not None
        if len(data) != 1 or not fds:
            self._socket.closer.close(fds)
            self._end()
            self._refuse(CallError("bad_request", "one byte with a file descriptor did not come"))
            if self._transport is not None:
                self._transport.close()
            return
        if self._patience is not None:
            self._patience.cancel()
        wanted.hand(fds[0], self._socket.closer)
        self._handed = wanted
        self._socket.closer.close(fds[1:])
        self._schedule()

    def _start(self, line: bytes) -> Any:
        self._request = None
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError:
            raise CallError("bad_request", "not a JSON object on a line") from None
        if not isinstance(request, dict):
            raise CallError("bad_request", "not a JSON object on a line")
        id_ = request.get("id")
        self._request = id_ if isinstance(id_, int | str) else None
        name = request.get("call")
        if name == "watch":
            self.watching = True
            return {"watching": True}
        call = self._socket.calls.get(name) if isinstance(name, str) else None
        if call is None:
            raise CallError(
                "not_allowed", f"no such call for the role {self._socket.role}; see docs/control.md"
            )
        return call(request)

    def _refuse(self, error: CallError) -> None:
        self._write({"id": self._request, "ok": False, "code": error.code, "error": str(error)})

    def _answer(self, result: Any) -> None:
        self._write({"id": self._request, "ok": True, "result": result})

    def _write(self, message: Mapping[str, Any]) -> None:
        if self._transport is not None:
            self._transport.write(orjson.dumps(message) + b"\n")

    def tell(self, line: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        if transport.get_write_buffer_size() > _LAG:
            self.lagged += 1
            return
        if self.lagged:
            transport.write(orjson.dumps({"lagged": self.lagged}) + b"\n")
            self.lagged = 0
        transport.write(line)

    def drop(self) -> None:
        """Cut the connection, unread or not."""
        if self._transport is not None:
            self._transport.abort()
        self._end()
        self._socket.clients.discard(self)


def handed_over() -> dict[str, socket.socket]:
    """Sockets that systemd opened for us, by their ``FileDescriptorName`` (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    handed = {}
    for i in range(int(os.environ.get("LISTEN_FDS", "0"))):
        sock = socket.socket(fileno=3 + i)
        sock.setblocking(False)
        os.set_inheritable(3 + i, False)
        handed[names[i] if i < len(names) else f"fd{i}"] = sock
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    return handed


# --- the other end ----------------------------------------------------------------------------------


class NoGate(Exception):
    """No gate listens there."""


class Client:
    """A blocking client, for the command line."""

    def __init__(self, path: Path, timeout: float = 10) -> None:
        """Connect.

        Raises:
            NoGate: nobody listens at the path.
            PermissionError: this user may not.
            CallError: the gate has too many clients.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._socket.close()
            raise NoGate(str(path)) from error
        except OSError:
            self._socket.close()
            raise
        self._file = self._socket.makefile("rb")
        self._id = 0
        try:
            self.hello: dict[str, Any] = self._read()
        except (OSError, NoGate):
            self.close()
            raise
        if "protocol" not in self.hello:
            self.close()
            raise CallError(str(self.hello.get("code")), str(self.hello.get("error")))

    def _read(self) -> dict[str, Any]:
        try:
            line = self._file.readline(64 * MAX_LINE)
        except ConnectionError as error:
            raise NoGate("the gate closed the connection") from error
        if not line.endswith(b"\n"):
            raise NoGate("the gate closed the connection")
        message: dict[str, Any] = orjson.loads(line)
        return message

    def call(self, name: str, *, timeout: float | None = None, **arguments: Any) -> Any:
        """Make a call and wait for its result; ``timeout`` in seconds, None: as for the connection.

        Raises:
            CallError: refused by the gate.
            NoGate: the gate went away.
            TimeoutError: it did not answer; the connection is then worth nothing any more.
        """
        return self._call(name, None, timeout, arguments)

    def call_with_fd(self, name: str, fd: int, *, timeout: float | None = None, **arguments: Any) -> Any:
        """The same with a file descriptor, which the gate asks for and gets a copy of."""
        return self._call(name, fd, timeout, arguments)

    def _call(self, name: str, fd: int | None, timeout: float | None, arguments: Mapping[str, Any]) -> Any:
        usual = self._socket.gettimeout()
        until = None if timeout is None else monotonic() + timeout
        try:
            return self._exchange(name, fd, until, arguments)
        except ConnectionError as error:
            raise NoGate("the gate closed the connection") from error
        finally:
            self._socket.settimeout(usual)

    def _exchange(self, name: str, fd: int | None, until: float | None, arguments: Mapping[str, Any]) -> Any:
        self._id += 1
        request = {"id": self._id, "call": name, **{k: v for k, v in arguments.items() if v is not None}}
        self._wait_until(until)
        self._socket.sendall(orjson.dumps(request) + b"\n")
        while True:
            self._wait_until(until)
            answer = self._read()
            if answer.get("id") != self._id:
                continue  # a verdict in between
            if answer.get("send_fd"):
                if fd is not None:
                    socket.send_fds(self._socket, [b"\n"], [fd])
                continue
            if answer.get("ok"):
                return answer.get("result")
            raise CallError(str(answer.get("code")), str(answer.get("error")))

    def _wait_until(self, until: float | None) -> None:
        if until is not None:
            left = until - monotonic()
            if left <= 0:
                raise TimeoutError("the gate did not answer in time")
            self._socket.settimeout(left)

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """Everything that is told after ``watch``, for ever."""
        self.call("watch")
        self._socket.settimeout(None)
        while True:
            message = self._read()
            if "verdict" in message:
                yield message["verdict"]

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
