"""All scanners at once: keyboards, HID POS and serial ones, on real descriptors, until one has read."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from gateway.config import Layout, ReaderConfig
from gateway.readers.keyboard import EVENT
from gateway.readers.opening import OpenDevice, open_device
from gateway.setup.asking import Abandoned, Terminal
from gateway.setup.dialogue import Scanner
from gateway.setup.scanning import listen
from gateway.setup.setupcode import LAYOUTS, TEXT, Learned
from tests.setup.test_setupcode import CTRL, SAME, C, chords, pressed

WAIT = 20.0


class Bench:
    """Scanners whose other ends are here: sockets in place of event and hidraw nodes, a pty for a port."""

    def __init__(self) -> None:
        self.ends: dict[str, socket.socket] = {}
        self._sockets: list[socket.socket] = []
        self.master, slave = os.openpty()
        self.port = os.ttyname(slave)
        os.close(slave)
        self.typed, self.keys = os.pipe()
        self.scanners = (
            Scanner("keyboard", "/k1", "K1", "/k1"),
            Scanner("keyboard", "/k2", "K2", "/k2"),
            Scanner("hidpos", "/h", "H", "/h"),
            Scanner("serial", self.port, "S", self.port),
            Scanner("serial", "/dev/no-such-port", "gone", "/dev/no-such-port"),
        )
        self.opened = threading.Event()

    def open(self, config: ReaderConfig) -> OpenDevice:
        if config.driver == "serial":
            try:
                return open_device(config)
            finally:
                if config.device != self.port:  # the last one
                    self.opened.set()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        self.ends[config.device] = ours
        self._sockets += [ours, theirs]
        return OpenDevice(theirs.fileno(), theirs.close)

    def hear(self, patience: float = WAIT) -> tuple[int, Learned] | None:
        return listen(self.scanners, Terminal(self.typed), self.open, patience)

    def hears(self, device: str, *pieces: bytes) -> tuple[int, Learned] | None:
        """What is heard when that device gives these pieces."""

        def play() -> None:
            assert self.opened.wait(WAIT)
            for piece in pieces:
                if device == self.port:
                    os.write(self.master, piece)
                else:
                    # Once Enter is down it was heard, and closed: its release has nowhere to go.
                    with suppress(BrokenPipeError):
                        self.ends[device].send(piece)

        player = threading.Thread(target=play)
        player.start()
        try:
            return self.hear()
        finally:
            player.join()

    def close(self) -> None:
        for end in self._sockets:
            end.close()
        for fd in (self.master, self.typed, self.keys):
            os.close(fd)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keyboards(bench: Bench, layout: Layout) -> None:
    """The second of two like keyboards types the set-up code in its layout: which one, and which layout."""
    data = pressed(chords(layout, TEXT))
    size = EVENT.size * 7
    found = bench.hears("/k2", *(data[at : at + size] for at in range(0, len(data), size)))
    assert found is not None
    place, learned = found
    assert (place, learned.code) == (1, TEXT.encode())
    assert learned.settings.get("layout", "us") == SAME.get(layout, layout)


def test_hid_pos_and_serial(bench: Bench) -> None:
    """A report of a HID POS scanner, and a serial code in pieces: each tells its scanner."""
    code = TEXT.encode()
    report = bytes((2, len(code))) + b"]C0" + code.ljust(56, b"\0") + b"\0\0\0"
    found = bench.hears("/h", report)
    assert found is not None
    assert (found[0], found[1].settings) == (2, {})
    bench.opened.clear()
    found = bench.hears(bench.port, b"]C0", code, b"\r")
    assert found is not None
    assert (found[0], found[1].settings) == (3, {"strip_aim": True})


def test_a_person_at_a_keyboard(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    """A grabbed keyboard may be the technician's own: Enter on it goes on, Ctrl-C on it interrupts. Enter on
    the terminal goes on too; its end is an end. A scanner that is gone or cannot be opened is told."""
    assert bench.hears("/k1", pressed([])) is None
    bench.opened.clear()
    with pytest.raises(KeyboardInterrupt):
        bench.hears("/k1", pressed([(CTRL, C)]))
    os.write(bench.keys, b"\n")
    assert bench.hear() is None
    bench.opened.clear()

    def unplug() -> None:
        assert bench.opened.wait(WAIT)
        bench.ends["/k1"].close()
        os.write(bench.keys, b"\n")

    player = threading.Thread(target=unplug)
    player.start()
    assert bench.hear() is None
    player.join()
    assert "/dev/no-such-port: not there" in capfd.readouterr().err
    assert bench.hear(patience=0.01) is None
    assert "Nothing was scanned." in capfd.readouterr().err
    os.close(bench.keys)
    with pytest.raises(Abandoned, match="the input has ended"):
        bench.hear()
    bench.keys = os.open(os.devnull, os.O_RDONLY)
