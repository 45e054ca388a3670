"""Serial relay boards: the bytes, and boards on real ptys."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time

import pytest

from gateway.config import RelayConfig
from gateway.turnstile.board import Board
from gateway.turnstile.build import make_relay
from gateway.turnstile.relay import Relay
from gateway.turnstile.serialrelay import (
    GAP,
    kmtronic_frame,
    lcus_answer,
    lcus_frame,
    numato_complaint,
    numato_line,
)

from .peers import Peer, Told, until

PULSE = 60_000
TIOCGEXCL = 0x80045440
"""linux/tty: reads whether TIOCEXCL is set; Python has no name for it."""
LCUS_ON, LCUS_OFF = bytes.fromhex("A00101A2"), bytes.fromhex("A00100A1")


@pytest.mark.parametrize(
    ("channel", "on", "frame"),
    [(1, True, "A00101A2"), (1, False, "A00100A1"), (2, True, "A00201A3"), (2, False, "A00200A2")],
)
def test_lcus_frames(channel, on, frame):
    """The published LCUS commands, byte for byte."""
    assert lcus_frame(channel, on) == bytes.fromhex(frame)


def test_lcus_feedback_frames():
    """The ops of the feedback firmware, and its answer."""
    assert lcus_frame(1, True, feedback=True) == bytes.fromhex("A00103A4")
    assert lcus_frame(1, False, feedback=True) == bytes.fromhex("A00102A3")
    assert lcus_answer(1, True) == bytes.fromhex("A00101A2")


def test_lcus_sum_is_one_byte():
    """The sum runs over."""
    assert lcus_frame(0x70, True) == bytes.fromhex("A0700111")


def test_kmtronic_frames():
    """FF, channel, state."""
    assert kmtronic_frame(3, True) == bytes.fromhex("FF0301")
    assert kmtronic_frame(3, False) == bytes.fromhex("FF0300")


@pytest.mark.parametrize(("channel", "digit"), [(1, b"0"), (10, b"9"), (11, b"A"), (16, b"F")])
def test_numato_lines(channel, digit):
    """Channels count from 0 on the wire, as one upper-case hexadecimal digit."""
    assert numato_line(channel, True) == b"relay on " + digit + b"\r"
    assert numato_line(channel, False) == b"relay off " + digit + b"\r"


def test_numato_refuses_channels_it_would_send_to_another_relay():
    """Two digits would switch the relay of the first digit."""
    with pytest.raises(ValueError, match="1 to 16"):
        numato_line(17, True)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"relay on 0\r\n\r>", ""),
        (b"\n\r>", ""),
        (b"relay on 0\n\rinvalid command\n\r>", "invalid command"),
    ],
)
def test_numato_answers(answer, complaint):
    """The echo is skipped; what is left is a complaint."""
    assert numato_complaint(b"relay on 0\r", answer) == complaint


def serial(path, board="lcus", channel=1) -> RelayConfig:
    return RelayConfig("serial", device=str(path), board=board, channel=channel)


def relay(config: RelayConfig, told: Told, boards: dict[str, Board]) -> Relay:
    return make_relay(config, asyncio.get_running_loop(), told.callbacks, boards)


def lcus_feedback(command: bytes) -> bytes:
    state = command[2] & 1
    return bytes((0xA0, command[1], state, (0xA0 + command[1] + state) & 0xFF))


def numato(command: bytes) -> bytes:
    return command + b"\n\r>"


@pytest.mark.parametrize(
    ("board", "size", "answer", "expected"),
    [
        ("lcus", 4, lambda _: b"", ["A00100A1", "A00101A2", "A00100A1", "A00100A1"]),
        ("lcus_feedback", 4, lcus_feedback, ["A00102A3", "A00103A4", "A00102A3", "A00102A3"]),
        ("kmtronic", 3, lambda _: b"", ["FF0100", "FF0101", "FF0100", "FF0100"]),
        ("numato", 0, numato, [b"relay off 0\r", b"relay on 0\r", b"relay off 0\r", b"relay off 0\r"]),
    ],
)
async def test_a_pulse_of_each_board(tmp_path, board, size, answer, expected):
    """Opening puts the contact off without a pulse; a pulse is on, then off; closing leaves it off."""
    peer = Peer(tmp_path / "port", size, answer)
    told = Told()
    north = relay(serial(tmp_path / "port", board), told, {})
    north.open()
    await until(lambda: told.ups)
    assert north.up
    before = time.monotonic_ns() // 1000
    north.pulse(PULSE)
    await until(lambda: len(peer.heard) == 3)
    north.close(False)
    await until(lambda: len(peer.heard) == 4)
    peer.unplug()
    assert peer.commands == [bytes.fromhex(c) if isinstance(c, str) else c for c in expected]
    assert told.states == [(True, "")]
    assert told.failed == []
    (written,) = told.pulsed
    assert before <= written <= time.monotonic_ns() // 1000
    on, off = peer.heard[1][0], peer.heard[2][0]
    assert off - written / 1e6 >= PULSE / 1e6
    assert on > peer.heard[0][0]


async def test_commands_to_one_board_keep_their_distance(tmp_path):
    """Two lanes on one board: every command arrives, none less than the board's gap after the one before."""
    peer = Peer(tmp_path / "port", 4)
    boards: dict[str, Board] = {}
    told = Told(), Told()
    lanes = [relay(serial(tmp_path / "port", channel=n + 1), told[n], boards) for n in (0, 1)]
    for lane in lanes:
        lane.open()
    await until(lambda: told[0].ups and told[1].ups)
    for lane in lanes:
        lane.pulse(PULSE)
    await until(lambda: len(peer.heard) == 6)
    for lane in lanes:
        lane.close(False)
    await until(lambda: len(peer.heard) == 8)
    peer.unplug()
    assert len(boards) == 1
    ones = [c for c in peer.commands if c[1] == 1]
    twos = [c for c in peer.commands if c[1] == 2]
    assert ones == [LCUS_OFF, LCUS_ON, LCUS_OFF, LCUS_OFF]
    assert twos == [bytes.fromhex(c) for c in ("A00200A2", "A00201A3", "A00200A2", "A00200A2")]
    # Measured where the bytes arrive, which jitters; from first to last it cannot be shorter.
    first, last = peer.heard[0][0], peer.heard[-1][0]
    assert last - first > (len(peer.heard) - 2) * GAP


async def test_held_on_and_let_go(tmp_path):
    """hold switches once each way; a pulse into a held contact sends nothing."""
    peer = Peer(tmp_path / "port", 4)
    told = Told()
    north = relay(serial(tmp_path / "port"), told, {})
    north.open()
    north.hold(True)
    north.pulse(PULSE)
    await until(lambda: told.pulsed)
    north.hold(False)
    north.close(False)
    await until(lambda: len(peer.heard) == 4)
    peer.unplug()
    assert peer.commands == [LCUS_OFF, LCUS_ON, LCUS_OFF, LCUS_OFF]


async def test_fail_safe_leaves_the_contact_on(tmp_path):
    """close(True) is the last word that the board hears."""
    peer = Peer(tmp_path / "port", 4)
    told = Told()
    north = relay(serial(tmp_path / "port"), told, {})
    north.open()
    await until(lambda: told.ups)
    north.close(True)
    await until(lambda: len(peer.heard) == 2)
    peer.unplug()
    assert peer.commands == [LCUS_OFF, LCUS_ON]


async def test_a_lost_board_is_told_once_others_go_on_and_it_comes_back(tmp_path):
    """Pulled out: down once, the pulse meanwhile is told as not given and never made up for, another lane
    works on; plugged in again under the same path: up, in the state that the lane has now."""
    peer = Peer(tmp_path / "port", 4)
    other = Peer(tmp_path / "other", 4)
    boards: dict[str, Board] = {}
    told, told_other = Told(), Told()
    north = relay(serial(tmp_path / "port"), told, boards)
    south = relay(serial(tmp_path / "other"), told_other, boards)
    north.open()
    south.open()
    await until(lambda: told.ups and told_other.ups)
    peer.unplug()
    await until(lambda: not north.up)
    north.pulse(PULSE)
    await until(lambda: told.failed)
    south.pulse(PULSE)
    await until(lambda: told_other.pulsed)
    again = Peer(tmp_path / "port", 4)
    await until(lambda: north.up)
    north.pulse(PULSE)
    await until(lambda: len(again.heard) == 3)
    north.close(False)
    south.close(False)
    again.unplug()
    other.unplug()
    assert told.ups == [True, False, True]
    assert str(tmp_path / "port") in told.states[1][1]
    assert len(told.failed) == 1
    assert again.commands[:3] == [LCUS_OFF, LCUS_ON, LCUS_OFF]
    assert len(told.pulsed) == 1
    assert told_other.ups == [True]


async def test_a_board_that_comes_back_is_held_where_the_lane_is_free(tmp_path):
    """The state on reopening is the lane's: held on, also when that was asked for while it was away."""
    peer = Peer(tmp_path / "port", 4)
    told = Told()
    north = relay(serial(tmp_path / "port"), told, {})
    north.open()
    await until(lambda: told.ups)
    peer.unplug()
    await until(lambda: not north.up)
    north.hold(True)
    again = Peer(tmp_path / "port", 4)
    await until(lambda: north.up)
    north.close(True)
    await until(lambda: len(again.heard) == 2)
    again.unplug()
    assert again.commands == [LCUS_ON, LCUS_ON]


async def test_a_board_that_is_not_there_is_told_with_the_remedy(tmp_path):
    """A wrong path: down with a text that helps, and up as soon as the path exists."""
    told = Told()
    north = relay(serial(tmp_path / "port"), told, {})
    north.open()
    await until(lambda: told.states)
    assert told.states[0][0] is False
    assert str(tmp_path / "port") in told.states[0][1]
    assert "by-id" in told.states[0][1]
    peer = Peer(tmp_path / "port", 4)
    await until(lambda: north.up)
    north.close(False)
    peer.unplug()
    assert told.ups == [False, True]


async def test_a_file_that_is_no_serial_port_is_told(tmp_path):
    """Not a terminal: the reason says so, and nothing is raised."""
    (tmp_path / "port").write_bytes(b"")
    told = Told()
    north = relay(serial(tmp_path / "port"), told, {})
    north.open()
    await until(lambda: told.states)
    north.close(False)
    assert "not a serial port" in told.states[0][1]


async def test_the_port_is_ours_alone(tmp_path):
    """flock and TIOCEXCL are set: a second opener that asks is refused."""
    peer = Peer(tmp_path / "port", 4)
    first, second = Told(), Told()
    north = relay(serial(tmp_path / "port"), first, {})
    north.open()
    await until(lambda: first.ups)
    south = relay(serial(tmp_path / "port"), second, {})
    south.open()
    await until(lambda: second.states)
    try:
        fd = os.open(tmp_path / "port", os.O_RDWR | os.O_NOCTTY)
    except OSError as fault:
        locked = fault.errno == errno.EBUSY
    else:
        # root may open it all the same; the kernel says whether it is locked to others.
        flag = bytearray(4)
        fcntl.ioctl(fd, TIOCGEXCL, flag)
        os.close(fd)
        locked = flag[0] == 1
    north.close(False)
    south.close(False)
    peer.unplug()
    assert locked
    assert "another program has it" in second.states[0][1]


async def test_a_silent_feedback_board_gets_no_second_pulse(tmp_path):
    """No answer to a pulse: told as unknown, the board is down, and the next thing it hears is off."""
    deaf: list[bool] = []
    peer = Peer(tmp_path / "port", 4, lambda command: b"" if deaf else lcus_feedback(command))
    told = Told()
    north = relay(serial(tmp_path / "port", "lcus_feedback"), told, {})
    north.open()
    await until(lambda: told.ups)
    deaf.append(True)
    north.pulse(PULSE)
    await until(lambda: told.ups == [True, False])
    deaf.clear()
    await until(lambda: told.ups == [True, False, True])
    north.close(False)
    peer.unplug()
    assert peer.commands.count(bytes.fromhex("A00103A4")) == 1
    assert peer.commands[2] == bytes.fromhex("A00102A3")
    assert told.pulsed == []
    assert "not repeated" in told.failed[0]


async def test_a_numato_board_that_complains_is_down(tmp_path):
    """What the board says in words is in the reason."""
    peer = Peer(tmp_path / "port", 0, lambda command: command + b"\n\rinvalid\n\r>")
    told = Told()
    north = relay(serial(tmp_path / "port", "numato"), told, {})
    north.open()
    await until(lambda: told.states)
    north.close(False)
    peer.unplug()
    assert told.states[0][0] is False
    assert "invalid" in told.states[0][1]


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (serial("/dev/x", "lcus"), serial("/dev/x", "kmtronic"), "same board"),
        (serial("/dev/x", "lcus"), RelayConfig("modbus", device="/dev/x"), "two drivers"),
        (
            RelayConfig("modbus", device="/dev/x"),
            RelayConfig("modbus", device="/dev/x", baudrate=19200),
            "baudrate",
        ),
    ],
)
async def test_one_port_is_one_kind_of_board(first, second, says):
    """Two lanes that disagree about a device are a configuration fault."""
    boards: dict[str, Board] = {}
    relay(first, Told(), boards)
    with pytest.raises(ValueError, match=says):
        relay(second, Told(), boards)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (RelayConfig("serial"), "device"),
        (RelayConfig("modbus"), "device"),
        (RelayConfig("gpio", chip="gpiochip0"), "chip and line"),
        (serial("/dev/x", "numato", 17), "1 to 16"),
        (serial("/dev/x", "lcus", 0), "count from 1"),
        (serial("/dev/x", "teletype"), "one of lcus"),
        (RelayConfig("modbus", device="/dev/x", board="teletype"), "one of waveshare"),
        (RelayConfig("modbus", device="/dev/x", address=0), "from 1 to 255"),
        (RelayConfig("usbrelay", channel=9), "1 to 8"),
    ],
)
async def test_what_no_board_can_be_is_a_configuration_fault(config, says):
    """The message names the key and what it may be."""
    with pytest.raises(ValueError, match=says):
        relay(config, Told(), {})
