"""A call that takes a file descriptor from its client, and clients that do not give what is asked for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.control import Call, CallError, Client, Later, NoGate, Socket, TakeFd


class Rig:
    """A socket with calls that take descriptors, and what became of them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sync.sock"
        self.file = folder / "file"
        self.file.write_bytes(b"what is in the file")
        self.dropped = 0
        self.closed: list[str] = []
        self.building = False
        calls: dict[str, Call] = {
            "take": self.take,
            "keep": self.keep,
            "build": self.build,
            "hi": lambda _: {"hi": True},
        }
        self.socket = Socket("sync", calls, {"gateway": "north"}, self._drop)

    def _drop(self, _: str) -> None:
        self.dropped += 1

    def take(self, _: Mapping[str, Any]) -> Generator[Any, None, None]:
        """Reads from a descriptor and closes it."""
        handed = TakeFd()
        try:
            yield Later()
            yield handed
            assert handed.fd is not None
            assert not os.get_inheritable(handed.fd)
            yield Later(0.01)
            yield {"text": os.pread(handed.fd, 100, 0).decode()}
        finally:
            self.closed.append("take")
            handed.close()

    def keep(self, _: Mapping[str, Any]) -> Generator[Any, None, None]:
        """Goes on for ever with a descriptor."""
        handed = TakeFd()
        try:
            yield handed
            self.building = True
            while True:
                yield Later(0.05)
        finally:
            self.closed.append("keep")
            handed.close()

    def build(self, _: Mapping[str, Any]) -> Generator[Any, None, None]:
        """Goes on for ever."""
        try:
            self.building = True
            while True:
                yield Later(0.05)
        finally:
            self.closed.append("build")


class Raw:
    """A client that sends what it likes."""

    def __init__(self, rig: Rig) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(rig.path))
        self.file = self.socket.makefile("rb")
        self.read()

    def read(self) -> Any:
        line = self.file.readline()
        return orjson.loads(line) if line else None

    def ask(self, name: str) -> Any:
        """Makes a call; the next line."""
        self.socket.sendall(orjson.dumps({"id": 1, "call": name}) + b"\n")
        return self.read()

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def until(condition: Callable[[], object]) -> None:
    """Polls; the test's own time-out is the bound."""
    while not condition():  # noqa: ASYNC110  what is waited for happens in threads
        await asyncio.sleep(0.005)


def run(folder: Path, act: Callable[[Rig], Any], *, dropped: int = 0) -> Rig:
    """Runs a client in a thread beside the socket: afterwards no descriptor more is open than before, the
    others are served, and so many clients were cut off."""

    async def main() -> Rig:
        rig = Rig(folder)
        await rig.socket.listen(rig.path)
        await asyncio.to_thread(_hi, rig)  # what is made at the first time is there
        await until(lambda: not rig.socket.clients)
        await asyncio.sleep(0.05)  # its descriptor is closed a turn of the loop later
        gc.collect()  # what other tests have left behind is not to go meanwhile
        before = fds()
        await asyncio.to_thread(act, rig)
        await until(lambda: not rig.socket.clients and fds() <= before)
        await asyncio.to_thread(_hi, rig)
        rig.socket.close()
        await asyncio.sleep(0)
        return rig

    rig = asyncio.run(main())
    assert rig.dropped == dropped
    return rig


def _hi(rig: Rig) -> None:
    with Client(rig.path) as client:
        assert client.call("hi", timeout=20) == {"hi": True}


@contextlib.contextmanager
def raw(rig: Rig) -> Iterator[Raw]:
    client = Raw(rig)
    try:
        yield client
    finally:
        client.close()


ASKED = {"id": 1, "send_fd": True}


def test_a_call_takes_a_descriptor(tmp_path: Path) -> None:
    """The handler reads the client's file, also the second time on one connection, and others in between."""

    def act(rig: Rig) -> None:
        with Client(rig.path) as client, rig.file.open("rb") as file:
            for _ in range(2):
                assert client.call_with_fd("take", file.fileno(), timeout=20) == {
                    "text": "what is in the file"
                }
                assert client.call("hi") == {"hi": True}
            assert client.call_with_fd("hi", file.fileno()) == {"hi": True}

    assert run(tmp_path, act).closed == ["take", "take"]


def test_surplus_descriptors_are_closed(tmp_path: Path) -> None:
    """Of two or 200 descriptors that come for one the first is taken."""

    def act(rig: Rig) -> None:
        for count in (2, 200):
            with raw(rig) as client, rig.file.open("rb") as file:
                assert client.ask("take") == ASKED
                socket.send_fds(client.socket, [b"x"], [file.fileno()] * count)
                assert client.read()["result"] == {"text": "what is in the file"}

    run(tmp_path, act)


def test_a_byte_without_a_descriptor_or_more_bytes(tmp_path: Path) -> None:
    """The call is refused, its handler closed, and the connection too: what follows could be anything."""

    def act(rig: Rig) -> None:
        for data, count in ((b"x", 0), (b"garbage", 1), (b'{"id":2,"call":"hi"}\n', 0)):
            with raw(rig) as client, rig.file.open("rb") as file:
                assert client.ask("take") == ASKED
                socket.send_fds(client.socket, [data], [file.fileno()] * count)
                answer = client.read()
                assert (answer["id"], answer["ok"], answer["code"]) == (1, False, "bad_request")
                assert client.read() is None

    assert run(tmp_path, act).closed == ["take"] * 3


def test_a_request_that_does_not_wait(tmp_path: Path) -> None:
    """Where another request lies there already, no descriptor is asked for."""

    def act(rig: Rig) -> None:
        with raw(rig) as client:
            client.socket.sendall(b'{"id":1,"call":"take"}\n{"id":2,"call":"hi"}\n')
            answer = client.read()
            assert (answer["id"], answer["code"]) == (1, "bad_request")
            assert client.read() == {"id": 2, "ok": True, "result": {"hi": True}}

    assert run(tmp_path, act).closed == ["take"]


def test_a_silent_client(tmp_path: Path) -> None:
    """After five seconds without a descriptor the call is refused; meanwhile others are served."""

    def act(rig: Rig) -> None:
        with raw(rig) as client:
            assert client.ask("take") == ASKED
            _hi(rig)
            assert client.read()["code"] == "bad_request"
            assert client.read() is None

    assert run(tmp_path, act).closed == ["take"]


def test_a_client_that_goes_in_the_middle(tmp_path: Path) -> None:
    """Before it gave the descriptor, as it gave it, or while the handler works with it: the handler is closed
    and so is the descriptor."""

    def act(rig: Rig) -> None:
        with raw(rig) as client:
            assert client.ask("take") == ASKED
        for _ in range(20):
            with raw(rig) as client, rig.file.open("rb") as file:
                assert client.ask("take") == ASKED
                socket.send_fds(client.socket, [b"x"], [file.fileno()])
        with raw(rig) as client, rig.file.open("rb") as file:
            assert client.ask("keep") == ASKED
            socket.send_fds(client.socket, [b"x"], [file.fileno()])
            while not rig.building:
                time.sleep(0.005)

    closed = run(tmp_path, act).closed
    assert sorted(closed) == ["keep"] + ["take"] * 21


def test_a_descriptor_that_nobody_asked_for(tmp_path: Path) -> None:
    """It is closed, with or without a request around it, and its sender is cut off."""

    def act(rig: Rig) -> None:
        for data in (b"\n", b'{"id":1,"call":"hi"}\n', b'{"id":1,"call":"ta'):
            with raw(rig) as client, rig.file.open("rb") as file:
                socket.send_fds(client.socket, [data], [file.fileno()] * 100)
                with contextlib.suppress(ConnectionError):
                    assert client.read() is None

    run(tmp_path, act, dropped=3)


@contextlib.contextmanager
def lingering(count: int) -> Iterator[list[socket.socket]]:
    """TCP sockets whose last close waits for a minute, or until this ends."""
    ours, theirs = [], []
    with socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(count):
            ours.append(socket.create_connection(server.getsockname()))
            theirs.append(server.accept()[0])
    for one in ours:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        one.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                one.send(bytes(1 << 16))
    try:
        yield ours
    finally:
        for one in theirs:  # with unread bytes: the other end is reset, and nobody waits any more
            one.close()


def closing() -> int:
    return sum(thread.name == "close" for thread in threading.enumerate())


def test_a_descriptor_whose_closing_waits(tmp_path: Path) -> None:
    """The last close of a TCP socket with a linger waits; the loop does not, whichever way it came: unasked,
    as the one that was asked for, or unread when the connection is closed."""

    async def main() -> None:
        rig = Rig(tmp_path)
        await rig.socket.listen(rig.path)
        with lingering(3) as (unasked, asked, unread):
            client = await asyncio.to_thread(Raw, rig)
            socket.send_fds(client.socket, [b"x"], [unasked.fileno()])
            unasked.close()
            await until(lambda: closing() == 1)
            client.close()

            client = await asyncio.to_thread(Raw, rig)
            assert await asyncio.to_thread(client.ask, "keep") == ASKED
            socket.send_fds(client.socket, [b"x"], [asked.fileno()])
            asked.close()
            await until(lambda: rig.building)
            client.close()
            await until(lambda: closing() == 2)
            await asyncio.to_thread(_hi, rig)

            client = await asyncio.to_thread(Raw, rig)
            client.socket.sendall(b'{"id":1,"call":"build"}\n')
            await asyncio.to_thread(client.socket.sendall, bytes(1 << 18) + b"x")  # and it reads no further
            await asyncio.sleep(0.1)
            socket.send_fds(client.socket, [b"x"], [unread.fileno()])
            unread.close()
            await asyncio.to_thread(_hi, rig)
            assert closing() == 2
            rig.socket.close()
            await until(lambda: closing() == 3)
            client.close()
        await until(lambda: closing() == 0)

    asyncio.run(main())


def test_descriptors_that_fill_the_table(tmp_path: Path) -> None:
    """When many closings hang, the socket shuts, before the gate has no descriptors left."""

    async def main() -> None:
        rig = Rig(tmp_path)
        await rig.socket.listen(rig.path)
        with lingering(2) as ours, rig.file.open("rb") as file:
            for one in ours:
                with contextlib.closing(await asyncio.to_thread(Raw, rig)) as client:
                    socket.send_fds(client.socket, [b"x"], [one.fileno()] + [file.fileno()] * 252)
                    one.close()
                    await until(lambda: not rig.socket.clients)
                    await until(lambda: closing() == 1 + ours.index(one))  # noqa: B023
            await until(lambda: not rig.path.exists())
            with pytest.raises(NoGate):
                await asyncio.to_thread(Client, rig.path)
        assert rig.dropped == 3
        await until(lambda: closing() == 0)

    asyncio.run(main())


def test_a_long_call_keeps_nobody_from_their_turn(tmp_path: Path) -> None:
    """While ten clients have calls that go on for minutes, another's are answered one after the other; their
    handlers are closed when the clients go, or the socket."""

    def act(rig: Rig) -> None:
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                client = stack.enter_context(raw(rig))
                client.socket.sendall(b'{"id":1,"call":"build"}\n')
            with Client(rig.path) as other:
                for _ in range(50):
                    assert other.call("hi", timeout=20) == {"hi": True}
            while not rig.building:
                time.sleep(0.005)

    assert set(run(tmp_path, act).closed) == {"build"}

    async def shut() -> None:
        rig = Rig(tmp_path)
        await rig.socket.listen(rig.path)
        client = await asyncio.to_thread(Raw, rig)
        client.socket.sendall(b'{"id":1,"call":"build"}\n')
        await until(lambda: rig.building)
        rig.socket.close()
        assert rig.closed == ["build"]
        client.close()
        await asyncio.sleep(0)

    asyncio.run(shut())


def test_a_call_that_does_not_come_to_an_end(tmp_path: Path) -> None:
    """The client's time-out is of the call, not of each line; a gate that goes is told as such."""

    def act(rig: Rig) -> None:
        with Client(rig.path) as client, pytest.raises(TimeoutError):
            client.call("build", timeout=0.1)
        with Client(rig.path) as client, rig.file.open("rb") as file, pytest.raises(CallError) as caught:
            client.call_with_fd("nothing", file.fileno())
        assert caught.value.code == "not_allowed"
        with Client(rig.path) as client, rig.file.open("rb") as file:
            client._socket.shutdown(socket.SHUT_WR)
            with pytest.raises(NoGate):
                client.call_with_fd("take", file.fileno())

    run(tmp_path, act)
