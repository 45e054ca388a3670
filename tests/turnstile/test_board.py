"""A board's thread and what it does with a device that hangs, fails or goes; USB relay boards on a socket;
the relay and the input in memory; GPIO and discovery on a machine that has none."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
import time

import pytest

from gateway.config import InputConfig, RelayConfig
from gateway.turnstile import discover
from gateway.turnstile.board import STALE, Board, BoardRelay
from gateway.turnstile.build import make_input, make_relay
from gateway.turnstile.gpio import GpioInput, find_chip, list_chips
from gateway.turnstile.relay import InputCallbacks, MemoryInput, MemoryRelay
from gateway.turnstile.usbrelay import UsbContact, UsbLink, command, find_board, parse_state, read_state

from .peers import Told, until

PULSE = 50_000
NO_CHIP = "no-such-chip"


class Bench:
    """A device in memory: notes what it is told, can be slow, broken or gone."""

    gap = 0.0
    prompt = False

    def __init__(self) -> None:
        self.heard: list[bool] = []
        self.by: list[str] = []
        self.fault: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def open(self) -> None:
        if self.fault is not None:
            raise self.fault

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass

    def switch(self, on: bool) -> int:
        self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.heard.append(on)
        self.by.append(threading.current_thread().name)
        return time.monotonic_ns() // 1000

    def flash(self, duration: int) -> int | None:
        return None


def on_bench() -> tuple[Bench, Told, BoardRelay]:
    bench, told = Bench(), Told()
    board = Board("bench", bench)
    return bench, told, BoardRelay(board, bench, asyncio.get_running_loop(), told.callbacks)


async def test_a_pulse_during_a_pulse_makes_it_longer():
    """The contact goes off once, after the later end."""
    bench, told, relay = on_bench()
    relay.open()
    await until(lambda: told.ups)
    relay.pulse(PULSE)
    relay.pulse(4 * PULSE)
    await until(lambda: bench.heard[-1:] == [False] and len(bench.heard) > 2)
    ended = time.monotonic()
    relay.close(False)
    assert bench.heard == [False, True, True, False, False]
    assert ended - told.pulsed[1] / 1e6 >= 4 * PULSE / 1e6


async def test_a_pulse_that_waited_too_long_behind_a_blocked_device_is_not_given():
    """A device that hangs for seconds opens no gate afterwards."""
    bench, told, relay = on_bench()
    relay.open()
    await until(lambda: told.ups)
    bench.gate.clear()
    relay.hold(True)
    relay.hold(False)
    relay.pulse(PULSE)
    await asyncio.sleep(STALE + 0.1)
    bench.gate.set()
    await until(lambda: told.failed)
    relay.close(False)
    assert bench.heard == [False, True, False, False]
    assert "too long" in told.failed[0]
    assert told.pulsed == []


async def test_a_prompt_board_at_rest_is_pulsed_by_the_loop_and_put_off_by_its_thread():
    """The short cut: the pulse is there when the call returns, told later, and ended by the thread."""
    bench, told, relay = on_bench()
    bench.prompt = True
    relay.open()
    await until(lambda: told.ups)
    relay.pulse(PULSE)
    assert bench.heard == [False, True]
    assert told.pulsed == []
    await until(lambda: len(bench.heard) == 3)
    ended = time.monotonic()
    relay.close(False)
    assert bench.heard == [False, True, False, False]
    assert bench.by == ["board bench", "MainThread", "board bench", "board bench"]
    assert ended - told.pulsed[0] / 1e6 >= PULSE / 1e6


async def test_a_prompt_board_is_left_to_its_thread_where_it_is_not_at_rest():
    """During a pulse the loop gives no command: the thread makes it longer."""
    bench, told, relay = on_bench()
    bench.prompt = True
    relay.open()
    await until(lambda: told.ups)
    relay.pulse(PULSE)
    relay.pulse(PULSE)
    await until(lambda: bench.heard[-1:] == [False] and len(bench.heard) > 2)
    relay.close(False)
    assert bench.heard == [False, True, True, False, False]
    assert bench.by[1:3] == ["MainThread", "board bench"]
    assert len(told.pulsed) == 2


async def test_a_prompt_board_that_fails_is_told_by_its_thread():
    """A write that fails on the loop raises nothing there: told, down, and off when it is back."""
    bench, told, relay = on_bench()
    bench.prompt = True
    relay.open()
    await until(lambda: told.ups)
    bench.fault = OSError(errno.EIO, "Input/output error")
    relay.pulse(PULSE)
    await until(lambda: told.ups == [True, False])
    bench.fault = None
    await until(lambda: told.ups == [True, False, True])
    relay.close(False)
    assert bench.heard == [False, False, False]
    assert "not repeated" in told.failed[0]
    assert told.pulsed == []


async def test_closing_does_not_wait_for_a_device_that_hangs():
    """close comes back though the device does not."""
    bench, told, relay = on_bench()
    relay.open()
    await until(lambda: told.ups)
    bench.gate.clear()
    relay.hold(True)
    relay.close(False)
    assert bench.heard == [False]
    bench.gate.set()


async def test_a_write_that_fails_in_a_pulse_is_told_and_the_contact_put_off():
    """The board goes in the moment of the pulse: told, down, and off is what it hears when it is back."""
    bench, told, relay = on_bench()
    relay.open()
    await until(lambda: told.ups)
    bench.fault = OSError(errno.EIO, "Input/output error")
    relay.pulse(PULSE)
    await until(lambda: told.ups == [True, False])
    assert "Input/output error" in told.states[1][1]
    bench.fault = None
    await until(lambda: told.ups == [True, False, True])
    relay.close(False)
    assert bench.heard == [False, False, False]
    assert "not repeated" in told.failed[0]


async def test_a_mistake_in_a_driver_is_told_and_driven_again(caplog):
    """A driver that raises what it should not: the lane is down with a reason, logged, and comes back."""
    bench, told, relay = on_bench()
    relay.open()
    await until(lambda: told.ups)
    bench.fault = KeyError("oops")
    with caplog.at_level(logging.CRITICAL, "gateway.turnstile.board"):
        relay.hold(True)
        await until(lambda: told.ups == [True, False])
    bench.fault = None
    await until(lambda: told.ups == [True, False, True])
    relay.close(True)
    assert "the driver failed (KeyError" in told.states[1][1]
    assert bench.heard == [False, True, True]


async def test_a_relay_that_was_never_opened_can_be_closed():
    """An orderly stop after half a start."""
    bench, told, relay = on_bench()
    relay.close(False)
    assert bench.heard == []
    assert told.states == []


# --- dcttech ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channel", "on", "report"),
    [(1, True, "00FF01000000000000"), (1, False, "00FD01000000000000"), (8, True, "00FF08000000000000")],
)
def test_usb_relay_commands(channel, on, report):
    """Nine bytes: report number, command, channel from 1."""
    assert command(channel, on) == bytes.fromhex(report)


def test_usb_relay_state():
    """Id and state are one byte further on than without the report number."""
    assert parse_state(b"\0BITFT\0\0\x05") == ("BITFT", 5)


async def test_a_usb_relay_pulses_and_its_loss_is_told():
    """Whole reports arrive in order; when the other end goes, the relay is down and comes back anew."""
    ends: list[socket.socket] = []

    def plug() -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        ends.append(theirs)
        return ours.detach()

    link, told = UsbLink(None, None, plug), Told()
    relay = BoardRelay(Board("usb", link), UsbContact(link, 2), asyncio.get_running_loop(), told.callbacks)
    relay.open()
    await until(lambda: told.ups)
    relay.pulse(PULSE)
    await until(lambda: told.pulsed)
    loop = asyncio.get_running_loop()
    heard = [await loop.sock_recv(ends[0], 100) for _ in range(3)]
    assert heard == [command(2, False), command(2, True), command(2, False)]
    ends[0].close()
    await until(lambda: told.ups == [True, False])
    await until(lambda: told.ups == [True, False, True])
    assert await loop.sock_recv(ends[1], 100) == command(2, False)
    relay.close(False)
    assert await loop.sock_recv(ends[1], 100) == command(2, False)
    ends[1].close()
    assert told.failed == []


async def test_a_channel_that_the_board_does_not_have_is_told():
    """Relay 3 of a USBRelay2: down with a text that says so, nothing sent."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    link, told = UsbLink(None, None, lambda: os.dup(ours.fileno())), Told()
    link.channels = 2
    relay = BoardRelay(Board("usb", link), UsbContact(link, 3), asyncio.get_running_loop(), told.callbacks)
    relay.open()
    await until(lambda: told.states)
    relay.close(False)
    assert "the board has 2" in told.states[0][1]
    with pytest.raises(BlockingIOError):
        theirs.recv(100)
    ours.close()
    theirs.close()


def test_a_board_that_refuses_is_said_in_words():
    """A write that fails with EPIPE, as a stalled command does, names the board's refusal and no number."""
    reads, writes = os.pipe()
    os.close(reads)
    link = UsbLink(None, None, lambda: writes)
    link.open()
    with pytest.raises(OSError, match="the board refused the command"):
        link.send(1, True)
    link.close()


def test_reading_the_state_of_something_else_fails_at_once():
    """ENOTTY is no board; it is not the failure that is tried again."""
    with open("/dev/null", "rb+") as null, pytest.raises(OSError, match="Inappropriate ioctl"):
        read_state(null.fileno())


def test_a_missing_usb_board_is_said_with_what_is_there():
    """By id, and as the only one."""
    with pytest.raises(OSError, match="no USB relay board with the id 'ABCDE'; present: none"):
        find_board("ABCDE")
    with pytest.raises(OSError, match="plug in one"):
        find_board(None)


async def test_a_usb_relay_that_is_not_there_is_down(tmp_path):
    """From the configuration, by id and by path."""
    for config in (
        RelayConfig("usbrelay", board="ABCDE"),
        RelayConfig("usbrelay", device=str(tmp_path / "hidraw9")),
    ):
        told = Told()
        relay = make_relay(config, asyncio.get_running_loop(), told.callbacks, {})
        relay.open()
        await until(lambda told=told: told.states)
        relay.close(False)
        assert told.ups == [False]


# --- memory -----------------------------------------------------------------------------------------


async def test_the_relay_in_memory_keeps_its_history():
    """On and off, with the time between them; held; closed on."""
    told, changes = Told(), []
    relay = MemoryRelay(
        asyncio.get_running_loop(), told.callbacks, lambda at, on: changes.append((at, on)), keep=3
    )
    relay.open()
    relay.pulse(PULSE)
    assert relay.on
    await until(lambda: not relay.on)
    (on_at, _), (off_at, _) = relay.history
    assert off_at - on_at >= PULSE - 1000
    assert len(told.pulsed) == 1
    relay.hold(True)
    relay.pulse(PULSE)
    await asyncio.sleep(2 * PULSE / 1e6)
    assert relay.on
    relay.hold(False)
    assert not relay.on
    relay.close(True)
    assert relay.on
    assert [on for _, on in changes] == [True, False, True, False, True]
    assert len(relay.history) == 3


async def test_the_relay_in_memory_can_be_lost():
    """For tests of what is above it: down, pulses fail, back in the lane's state."""
    told = Told()
    relay = make_relay(RelayConfig("memory"), asyncio.get_running_loop(), told.callbacks, {})
    assert isinstance(relay, MemoryRelay)
    relay.open()
    relay.lose("pulled out")
    relay.pulse(PULSE)
    relay.hold(True)
    assert not relay.on
    relay.recover()
    assert relay.on
    await asyncio.sleep(0)
    assert told.ups == [True, False, True]
    assert len(told.failed) == 1
    relay.close(False)


class Seen:
    def __init__(self) -> None:
        self.edges: list[tuple[bool, int]] = []
        self.states: list[tuple[bool, str]] = []
        self.callbacks = InputCallbacks(
            lambda active, at: self.edges.append((active, at)),
            lambda up, reason: self.states.append((up, reason)),
        )


async def test_the_input_in_memory_fires():
    """A passage is an edge each way; a level that does not change is none; closed it is silent."""
    seen = Seen()
    sensor = make_input(InputConfig("memory"), asyncio.get_running_loop(), seen.callbacks)
    assert isinstance(sensor, MemoryInput)
    sensor.open()
    sensor.fire(7)
    sensor.set(False, 8)
    sensor.set(True, 9)
    assert sensor.active
    sensor.close()
    sensor.fire(10)
    await asyncio.sleep(0)
    assert seen.edges == [(True, 7), (False, 7), (True, 9)]
    assert seen.states == [(True, "")]


# --- GPIO and discovery, as far as a machine without them can show -----------------------------------


def test_a_chip_that_is_not_there_is_said_with_what_is_there():
    """By label or name: the message lists the labels that exist."""
    with pytest.raises(OSError, match="no GPIO chip 'no-such-chip'; present, by label:"):
        find_chip(NO_CHIP)


def test_the_chips_can_be_listed():
    """Every chip once, whatever there is."""
    chips = list_chips()
    assert len({path for path, _, _ in chips}) == len(chips)


async def test_a_gpio_relay_without_its_chip_is_down_and_fails_its_pulses():
    """Told once, each pulse told as not given, and an orderly end."""
    told = Told()
    config = RelayConfig("gpio", chip=NO_CHIP, line=17)
    relay = make_relay(config, asyncio.get_running_loop(), told.callbacks, {})
    relay.open()
    relay.pulse(PULSE)
    relay.hold(True)
    await until(lambda: told.states and told.failed)
    await asyncio.sleep(0.3)
    relay.close(False)
    assert told.ups == [False]
    assert NO_CHIP in told.states[0][1]
    assert told.pulsed == []


async def test_a_device_that_is_no_gpio_chip_is_told():
    """libgpiod's own refusal, with line and chip."""
    told = Told()
    config = RelayConfig("gpio", chip="/dev/null", line=17)
    relay = make_relay(config, asyncio.get_running_loop(), told.callbacks, {})
    relay.open()
    await until(lambda: told.states)
    relay.close(True)
    assert "line 17 of /dev/null" in told.states[0][1]


async def test_a_gpio_input_without_its_chip_is_down():
    """Its level is unknown, and closing it is in order."""
    seen = Seen()
    sensor = make_input(
        InputConfig("gpio", chip=NO_CHIP, line="PASS_A", bias="pull_up"),
        asyncio.get_running_loop(),
        seen.callbacks,
    )
    assert isinstance(sensor, GpioInput)
    sensor.open()
    await until(lambda: seen.states)
    assert sensor.active is None
    assert seen.states[0][0] is False
    assert NO_CHIP in seen.states[0][1]
    sensor.close()


def test_discovery_finds_only_what_it_can_configure():
    """Works with nothing; each thing found gives lines of configuration."""
    for board in discover.boards():
        assert all(line.startswith("relay = { driver = ") for line in board.toml())


def test_what_a_serial_adapter_may_carry_is_valid_configuration():
    """Each line offered is TOML, for the path given."""
    import tomllib

    found = discover.FoundBoard("adapter", "/dev/x", discover.serial_choices("/dev/x"))
    tables = [tomllib.loads(line)["relay"] for line in found.toml()]
    assert {table["driver"] for table in tables} == {"serial", "modbus"}
    assert all(table["device"] == "/dev/x" for table in tables)


def test_a_port_without_a_stable_name_keeps_its_own(tmp_path):
    """No link in /dev/serial: the path itself."""
    assert discover.stable_path(str(tmp_path / "ttyUSB0")) == str(tmp_path / "ttyUSB0")
