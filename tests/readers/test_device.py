"""The owner of input fds, on real ptys and sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import serial

from gateway.config import ReaderConfig
from gateway.model import Scan
from gateway.readers.device import OpenDevice, Reader, open_device
from gateway.readers.keyboard import EVENT, KEY_STATE_BYTES

DEADLINE = 20.0


async def until(true: Callable[[], bool]) -> None:
    """Wait until this is so; fail long after it should have been."""
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, "never came about"
        await asyncio.sleep(0.002)


class Pty:
    """A serial scanner: ``write`` is the scanner, ``close`` pulls its plug."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        self.path = os.ttyname(slave)
        os.close(slave)

    def write(self, data: bytes) -> None:
        os.write(self.master, data)

    def close(self) -> None:
        os.close(self.master)


class Desk:
    """Takes what a reader reports."""

    def __init__(self) -> None:
        self.scans: list[Scan] = []
        self.states: list[tuple[str, bool, str]] = []
        self.drops: list[tuple[str, int]] = []

    def reader(
        self, config: ReaderConfig, open_device: Callable[[ReaderConfig], OpenDevice] = open_device
    ) -> Reader:
        loop = asyncio.get_running_loop()
        return Reader(config, loop, self.scans.append, self.state, self.drop, open_device)

    def state(self, name: str, up: bool, reason: str) -> None:
        self.states.append((name, up, reason))

    def drop(self, name: str, count: int) -> None:
        self.drops.append((name, count))

    @property
    def payloads(self) -> list[bytes]:
        return [scan.payload for scan in self.scans]

    @property
    def ups(self) -> list[bool]:
        return [up for _, up, _ in self.states]


def serial_config(device: str, **more: object) -> ReaderConfig:
    return ReaderConfig("north", "north-in", "serial", device, **more)  # type: ignore[arg-type]


def run(test: Callable[[Desk], Awaitable[None]]) -> Desk:
    """Run a test on a loop of its own, in asyncio's debug mode."""
    desk = Desk()

    async def main() -> None:
        await test(desk)

    asyncio.run(main(), debug=True)
    return desk


def open_paths() -> list[str]:
    """What this process has open."""
    paths = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    return paths


def test_serial_scans() -> None:
    """Each code that comes over the port is a scan with its reader, its times and its AIM identifier."""
    pty = Pty()
    before, before_monotonic = time.time_ns() // 1000, time.monotonic_ns() // 1000

    async def test(desk: Desk) -> None:
        reader = desk.reader(serial_config(pty.path))
        reader.start()
        assert reader.up
        for part in (b"]Q18K", b"2M\r", b"\nPX4T\r\n", b"\xff\x00\r"):
            pty.write(part)
        await until(lambda: len(desk.scans) == 3)
        reader.close()

    desk = run(test)
    pty.close()
    assert desk.payloads == [b"]Q18K2M", b"PX4T", b"\xff\x00"]
    assert [scan.aim for scan in desk.scans] == ["]Q1", None, None]
    assert {scan.reader for scan in desk.scans} == {"north"}
    assert all(before <= scan.at <= time.time_ns() // 1000 for scan in desk.scans)
    assert all(before_monotonic <= scan.monotonic <= time.monotonic_ns() // 1000 for scan in desk.scans)
    assert desk.states == [("north", True, "")]
    assert desk.drops == []


def test_serial_framings() -> None:
    """Framing, silence and the taking off of AIM identifiers are as the configuration says."""
    frames, silent = Pty(), Pty()

    async def test(desk: Desk) -> None:
        first = desk.reader(serial_config(frames.path, framing="stx_etx", strip_aim=True))
        second = desk.reader(serial_config(silent.path, framing="idle", idle=20_000))
        first.start()
        frames.write(b"..\x02]Q18K\r2M\x03\r")
        await until(lambda: len(desk.scans) == 1)
        second.start()
        silent.write(b"PX4T\r\n")
        await until(lambda: len(desk.scans) == 2)
        first.close()
        second.close()

    assert run(test).payloads == [b"8K\r2M", b"PX4T\r\n"]
    frames.close()
    silent.close()


def test_serial_port_is_exclusive() -> None:
    """While a port is open here, others' exclusive opens are refused, and without root any open at all."""
    pty = Pty()
    os.chmod(pty.path, 0o666)
    device = open_device(serial_config(pty.path))
    with pytest.raises(serial.SerialException):
        serial.Serial(pty.path, exclusive=True)
    script = "import os, sys; os.getuid() or os.setuid(65534); os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)"
    command = [sys.executable, "-c", script, pty.path]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert f"[Errno {errno.EBUSY}]" in refused.stderr
    device.close()
    assert subprocess.run(command).returncode == 0
    pty.close()


def test_a_port_that_another_has_is_taken_when_it_is_free() -> None:
    """A busy port is told once, with what to do, and opened when the other has let it go."""
    pty = Pty()

    async def test(desk: Desk) -> None:
        other = serial.Serial(pty.path, exclusive=True)
        reader = desk.reader(serial_config(pty.path))
        reader.start()
        assert not reader.up
        await asyncio.sleep(0.5)
        other.close()
        await until(lambda: reader.up)
        pty.write(b"8K2M\r")
        await until(lambda: bool(desk.scans))
        reader.close()

    desk = run(test)
    pty.close()
    assert desk.ups == [False, True]
    assert "another program has it: stop that program" in desk.states[0][2]


def test_unplugged_and_plugged_in_again(tmp_path: Path) -> None:
    """A lost port is told once and closed at once; when its name is back it is opened and read as before."""
    first, second = Pty(), Pty()
    link = tmp_path / "scanner"
    link.symlink_to(first.path)

    async def test(desk: Desk) -> None:
        reader = desk.reader(serial_config(str(link)))
        reader.start()
        first.write(b"8K2M\rhalf")
        await until(lambda: len(desk.scans) == 1)
        assert first.path in open_paths()
        link.unlink()
        first.close()
        await until(lambda: not reader.up)
        assert first.path not in open_paths()
        await asyncio.sleep(0.5)
        assert desk.ups == [True, False]
        link.symlink_to(second.path)
        await until(lambda: reader.up)
        second.write(b"PX4T\r")
        await until(lambda: len(desk.scans) == 2)
        reader.close()
        assert second.path not in open_paths()

    desk = run(test)
    second.close()
    assert desk.payloads == [b"8K2M", b"PX4T"]
    assert desk.ups == [True, False, True]
    assert desk.states[1][2].startswith(f"{link}: unplugged")
    assert desk.drops == [("north", 1)]


def test_many_times_unplugged_leaks_nothing(tmp_path: Path) -> None:
    """However often a device goes and comes, no fd is left over."""
    link = tmp_path / "scanner"

    async def test(desk: Desk) -> None:
        pty = Pty()
        link.symlink_to(pty.path)
        reader = desk.reader(serial_config(str(link)))
        reader.start()
        before = len(open_paths())
        for count in range(1, 6):
            pty.write(b"8K2M\r")
            await until(lambda count=count: len(desk.scans) == count)  # type: ignore[misc]
            link.unlink()
            pty.close()
            await until(lambda: not reader.up)
            pty = Pty()
            link.symlink_to(pty.path)
            await until(lambda: reader.up)
            assert len(open_paths()) == before
        reader.close()
        pty.close()

    assert run(test).ups == [True] + [False, True] * 5


def test_a_device_that_is_not_there_yet(tmp_path: Path) -> None:
    """A device that is missing at the start is told once, and used when it comes."""
    pty = Pty()
    link = tmp_path / "scanner"

    async def test(desk: Desk) -> None:
        reader = desk.reader(serial_config(str(link)))
        reader.start()
        await asyncio.sleep(0.5)
        assert desk.states == [("north", False, desk.states[0][2])]
        link.symlink_to(pty.path)
        await until(lambda: reader.up)
        reader.close()

    reason = run(test).states[0][2]
    pty.close()
    assert reason.startswith(f"{link}: not there: plug it in")


@pytest.mark.parametrize("driver", ["serial", "keyboard"])
def test_a_file_is_no_device(tmp_path: Path, driver: str) -> None:
    """What is no device of the kind is a fault that names it, and leaves no fd."""
    path = tmp_path / "file"
    path.write_bytes(b"")

    async def test(desk: Desk) -> None:
        reader = desk.reader(ReaderConfig("north", "north-in", driver, str(path)))  # type: ignore[arg-type]
        reader.start()
        reader.close()
        assert str(path) not in open_paths()

    desk = run(test)
    assert desk.ups == [False]
    assert desk.states[0][2].startswith(f"{path}: cannot be opened: ")


def test_no_bytes_are_not_the_end() -> None:
    """A port without data says so; it does not look unplugged."""
    pty = Pty()
    device = open_device(serial_config(pty.path))
    with pytest.raises(BlockingIOError):
        os.read(device.fd, 100)
    device.close()
    pty.close()


def test_half_a_code_is_dropped_after_silence() -> None:
    """A serial code without its suffix is dropped and counted, and the next one is read."""
    pty = Pty()

    async def test(desk: Desk) -> None:
        reader = desk.reader(serial_config(pty.path))
        reader.start()
        pty.write(b"half")
        await until(lambda: bool(desk.drops))
        pty.write(b"8K2M\r")
        await until(lambda: bool(desk.scans))
        reader.close()

    desk = run(test)
    pty.close()
    assert desk.payloads == [b"8K2M"]
    assert desk.drops == [("north", 1)]


def test_a_slowed_reader_waits_and_others_do_not() -> None:
    """While one reader is slowed down its scans wait in the kernel; the other reader goes on."""
    slowed, other = Pty(), Pty()

    async def test(desk: Desk) -> None:
        first = desk.reader(serial_config(slowed.path))
        second = desk.reader(ReaderConfig("south", "south-in", "serial", other.path))
        first.start()
        second.start()
        first.slow(3600)
        slowed.write(b"8K2M\r")
        for count in range(1, 4):
            other.write(b"PX4T\r")
            await until(lambda count=count: len(desk.scans) == count)  # type: ignore[misc]
        assert desk.payloads == [b"PX4T"] * 3
        first.close()
        second.close()
        third = desk.reader(serial_config(slowed.path))
        third.start()
        third.slow(0.05)
        slowed.write(b"8K2M\r")
        await until(lambda: len(desk.scans) == 4)
        third.close()

    desk = run(test)
    slowed.close()
    other.close()
    assert desk.payloads[3] == b"8K2M"


def test_a_scan_may_slow_or_close_its_reader() -> None:
    """What is done with a scan may stop the reading that brought it."""
    pty = Pty()

    async def test(desk: Desk) -> None:
        def scanned(scan: Scan) -> None:
            desk.scans.append(scan)
            if scan.payload == b"slow":
                reader.slow(0.01)
            if scan.payload == b"close":
                reader.close()

        reader = Reader(serial_config(pty.path), asyncio.get_running_loop(), scanned, desk.state, desk.drop)
        reader.start()
        pty.write(b"slow\r")
        await until(lambda: len(desk.scans) == 1)
        pty.write(b"close\r")
        await until(lambda: len(desk.scans) == 2)
        assert not reader.up
        assert pty.path not in open_paths()

    assert run(test).ups == [True]
    pty.close()


class Wire:
    """A device made of a socket: each send is one read, as with hidraw and evdev."""

    def __init__(self, descriptor: bytes = b"", key_state: Callable[[], bytes] | None = None) -> None:
        self.far, self._near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.descriptor = descriptor
        self.key_state = key_state

    def open(self, config: ReaderConfig) -> OpenDevice:
        near, self._near = self._near, None  # type: ignore[assignment]
        if near is None:
            raise FileNotFoundError(errno.ENOENT, "gone", config.device)
        near.setblocking(False)
        return OpenDevice(near.fileno(), near.close, self.descriptor, self.key_state)


def test_hidpos_scans() -> None:
    """HID POS reports, one a read, become scans by the places that the descriptor gives."""
    descriptor = bytes.fromhex(
        "05 8C 09 02 A1 01 85 02 09 12 A1 02 15 00 26 FF 00 75 08 95 01 05 01 09 3B 81 02 95 03 05 8C 09 FB "
        "09 FC 09 FD 81 02 95 38 09 FE 82 02 01 25 01 75 01 95 01 09 FF 81 02 75 07 81 03 C0 C0"
    )
    wire = Wire(descriptor)

    async def test(desk: Desk) -> None:
        reader = desk.reader(ReaderConfig("north", "north-in", "hidpos", "/dev/hidraw0"), wire.open)
        reader.start()
        wire.far.send(b"\x02\x38]Q1" + b"A" * 56 + b"\x01")
        wire.far.send(b"\x05\x01")
        wire.far.send(b"\x02\x04]Q1" + b"8K2M" + bytes(53))
        wire.far.send(b"\x02\x38]Q1" + b"B" * 56 + b"\x01")
        await until(lambda: bool(desk.drops))
        wire.far.send(b"\x02\x04]X0" + b"PX4T" + bytes(53))
        await until(lambda: len(desk.scans) == 2)
        wire.far.close()
        await until(lambda: not reader.up)
        reader.close()

    desk = run(test)
    assert desk.payloads == [b"A" * 56 + b"8K2M", b"PX4T"]
    assert [scan.aim for scan in desk.scans] == ["]Q1", "]X0"]
    assert desk.drops == [("north", 1)]
    assert desk.ups == [True, False]


def test_hidpos_reports_of_one_code_may_come_slowly() -> None:
    """Reports as far apart as the kernel asks a slow scanner for them, 128 ms, are one code."""
    wire = Wire(b"")

    async def test(desk: Desk) -> None:
        reader = desk.reader(ReaderConfig("north", "north-in", "hidpos", "/dev/hidraw0"), wire.open)
        reader.start()
        wire.far.send(b"\x02\x38]Q1" + b"A" * 56 + b"\0\0\x01")
        await asyncio.sleep(0.128)
        wire.far.send(b"\x02\x04]Q1" + b"8K2M" + bytes(55))
        await until(lambda: bool(desk.scans))
        wire.far.close()
        await until(lambda: not reader.up)
        reader.close()

    desk = run(test)
    assert desk.payloads == [b"A" * 56 + b"8K2M"]
    assert desk.drops == []


def keys(*codes: int) -> bytes:
    """Presses of these keys, at the present time of the monotonic clock."""
    now = time.monotonic_ns() // 1000
    data = b""
    for code in codes:
        for value in (1, 0):
            data += EVENT.pack(now // 1_000_000, now % 1_000_000, 1, code, value)
            data += EVENT.pack(now // 1_000_000, now % 1_000_000, 0, 0, 0)
    return data


def test_keyboard_scans_and_overflow() -> None:
    """Key events become scans; after an overflow the scan is dropped and the state of the keys asked for."""
    asked: list[float] = []
    shift_held = bytearray(KEY_STATE_BYTES)
    shift_held[42 // 8] |= 1 << 42 % 8

    def key_state() -> bytes:
        asked.append(time.monotonic())
        return bytes(KEY_STATE_BYTES) if len(asked) == 1 else bytes(shift_held)

    wire = Wire(key_state=key_state)
    config = ReaderConfig("north", "north-in", "keyboard", "/dev/input/event0", layout="de", idle=20_000)

    async def test(desk: Desk) -> None:
        reader = desk.reader(config, wire.open)
        reader.start()
        assert len(asked) == 1
        await asyncio.sleep(0.05)  # longer than the silence that ends a torn code
        wire.far.send(keys(9, 21, 28))
        await until(lambda: len(desk.scans) == 1)
        now = time.monotonic_ns() // 1000
        wire.far.send(keys(9) + EVENT.pack(now // 1_000_000, now % 1_000_000, 0, 3, 0) + keys(28))
        await until(lambda: len(asked) == 2)
        await asyncio.sleep(0.05)
        wire.far.send(keys(21, 28))
        await until(lambda: len(desk.scans) == 2)
        wire.far.send(keys(9))
        await until(lambda: len(desk.drops) == 2)
        reader.close()

    desk = run(test)
    wire.far.close()
    assert desk.payloads == [b"8z", b"Z"]
    assert desk.drops == [("north", 1)] * 2


def test_keyboard_unplugged_while_asked_for_its_keys() -> None:
    """A device that is gone when its keys are asked for is lost like any other."""
    answers = iter([bytes(KEY_STATE_BYTES)])

    def key_state() -> bytes:
        for answer in answers:
            return answer
        raise OSError(errno.ENODEV, "No such device")

    wire = Wire(key_state=key_state)

    async def test(desk: Desk) -> None:
        reader = desk.reader(ReaderConfig("north", "north-in", "keyboard", "/dev/input/event0"), wire.open)
        reader.start()
        wire.far.send(EVENT.pack(0, 0, 0, 3, 0))
        await until(lambda: not reader.up)
        reader.close()

    desk = run(test)
    wire.far.close()
    assert desk.states[1] == ("north", False, "/dev/input/event0: unplugged (No such device)")


def test_a_fault_that_changes_is_told_when_it_stays() -> None:
    """After unplugging, a lasting other fault is told once more; one that passes at once is not."""
    wire = Wire()
    attempts: list[float] = []

    def opener(config: ReaderConfig) -> OpenDevice:
        attempts.append(time.monotonic())
        if len(attempts) == 1:
            return wire.open(config)
        if len(attempts) == 2:
            raise OSError(errno.ENXIO, "for a moment")
        raise PermissionError(errno.EACCES, "Permission denied", config.device)

    async def test(desk: Desk) -> None:
        reader = desk.reader(ReaderConfig("north", "north-in", "hidpos", "/dev/hidraw0"), opener)
        reader.start()
        wire.far.close()
        await until(lambda: len(desk.states) == 3)
        reader.close()

    desk = run(test)
    assert desk.ups == [True, False, False]
    assert "no permission" in desk.states[2][2]


STDIN = """
import asyncio, sys
from gateway.config import ReaderConfig
from gateway.readers.device import Reader
async def main():
    ended = asyncio.Event()
    def state(name, up, reason):
        print(up, reason)
        up or ended.set()
    reader = Reader(ReaderConfig("in", "p", "stdin", "-"), asyncio.get_running_loop(),
                    lambda scan: print(scan.payload), state, lambda name, count: print("dropped", count))
    reader.start()
    await ended.wait()
    reader.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["pipe", "file", "nothing"])
def test_stdin(tmp_path: Path, how: str) -> None:
    """Lines of stdin are scans, from a pipe or a file, the last one also without an end; then it ends."""
    lines = b"8K2M\n\nPX4T\r\nlast"
    command = [sys.executable, "-c", STDIN]
    if how == "pipe":
        done = subprocess.run(command, input=lines, capture_output=True, timeout=60, check=True)
    else:
        path = tmp_path / "lines"
        path.write_bytes(lines)
        with open(path if how == "file" else os.devnull, "rb") as stdin:
            done = subprocess.run(command, stdin=stdin, capture_output=True, timeout=60, check=True)
    codes = "b'8K2M'\nb'PX4T'\nb'last'\n" if how != "nothing" else ""
    assert done.stdout.decode() == f"True \n{codes}False end of input\n"


def test_a_reader_that_is_not_called_for_its_bytes_does_not_work() -> None:
    """`works` holds while bytes are read and while a device is looked for, and not when they stay unread."""
    devices: list[OpenDevice] = []

    def opening(config: ReaderConfig) -> OpenDevice:
        devices.append(open_device(config))
        return devices[-1]

    async def run() -> None:
        pty, desk = Pty(), Desk()
        reader = desk.reader(serial_config(pty.path), opening)
        reader.start()
        pty.write(b"FIRST\r")
        await until(lambda: desk.payloads == [b"FIRST"])
        assert reader.works()
        assert reader.works()
        loop = asyncio.get_running_loop()
        loop.remove_reader(devices[0].fd)
        assert reader.works()  # nothing waits
        pty.write(b"SECOND\r")
        await until(lambda: not reader.works())
        pty.close()
        reader.close()
        assert reader.works()

        away = desk.reader(serial_config("/dev/there-is-no-such-scanner"))
        away.start()
        assert away.works()
        assert away.works()
        away.close()

    asyncio.run(run())
