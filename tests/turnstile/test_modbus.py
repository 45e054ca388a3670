"""Modbus-RTU boards: the tables, and boards on a pty that check every frame's CRC."""

from __future__ import annotations

import asyncio

import pytest

from gateway.config import RelayConfig
from gateway.turnstile.board import Board
from gateway.turnstile.build import make_relay
from gateway.turnstile.modbus import flash_command, switch_command
from gateway.turnstile.relay import Relay

from .peers import Peer, Told, until

FLASH_500_MS = bytes.fromhex("0105020000050C71")
ON_1, OFF_1 = bytes.fromhex("01050000FF008C3A"), bytes.fromhex("010500000000CDCA")


def crc(data: bytes) -> bytes:
    """CRC-16 of Modbus, bit by bit."""
    value = 0xFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0xA001 if value & 1 else value >> 1
    return value.to_bytes(2, "little")


def frame(text: str) -> bytes:
    data = bytes.fromhex(text)
    return data + crc(data)


def echo(command: bytes) -> bytes:
    """A board that does as it is told, and says nothing to a damaged frame."""
    return command if crc(command[:6]) == command[6:] else b""


def test_the_crc_of_this_test_is_right():
    """The published frames, so that the peer below can be believed."""
    assert frame("010502000005") == FLASH_500_MS
    assert frame("01050000FF00") == ON_1
    assert frame("FF050000FF00") == bytes.fromhex("FF050000FF0099E4")


@pytest.mark.parametrize(
    ("board", "channel", "on", "off"),
    [
        ("plain", 1, (5, 0, 0xFF00), (5, 0, 0)),
        ("lctech", 2, (5, 1, 0xFF00), (5, 1, 0)),
        ("waveshare", 8, (5, 7, 0xFF00), (5, 7, 0)),
        ("laskakit", 3, (6, 3, 0x0100), (6, 3, 0x0200)),
    ],
)
def test_what_switches_a_channel(board, channel, on, off):
    """Coils count from 0, laskakit's registers from 1."""
    assert switch_command(board, channel, True) == on
    assert switch_command(board, channel, False) == off


@pytest.mark.parametrize(
    ("board", "duration", "command"),
    [
        ("waveshare", 500_000, (5, 0x0200, 5)),
        ("waveshare", 300_000, (5, 0x0200, 3)),
        ("waveshare", 300_001, (5, 0x0200, 4)),
        ("waveshare", 1, (5, 0x0200, 1)),
        ("waveshare", 3_276_800_000, None),
        ("laskakit", 1_000_000, (6, 1, 0x0601)),
        ("laskakit", 255_000_000, (6, 1, 0x06FF)),
        ("laskakit", 256_000_000, None),
        ("laskakit", 500_000, None),
        ("plain", 500_000, None),
        ("lctech", 500_000, None),
    ],
)
def test_pulses_that_the_board_times(board, duration, command):
    """Rounded up to what the board can count; not asked of a board that cannot."""
    assert flash_command(board, 1, duration) == command


def relay(path, told: Told, boards: dict[str, Board], board="waveshare", address=1, channel=1) -> Relay:
    config = RelayConfig("modbus", device=str(path), board=board, address=address, channel=channel)
    return make_relay(config, asyncio.get_running_loop(), told.callbacks, boards)


async def test_waveshare_times_the_pulse_itself(tmp_path):
    """One frame is the whole pulse: exactly the published bytes for half a second."""
    peer = Peer(tmp_path / "port", 8, echo)
    told = Told()
    north = relay(tmp_path / "port", told, {})
    north.open()
    await until(lambda: told.ups)
    north.pulse(500_000)
    await until(lambda: told.pulsed)
    north.close(False)
    peer.unplug()
    assert peer.commands == [OFF_1, FLASH_500_MS, OFF_1]
    assert told.states == [(True, "")]
    assert told.failed == []


@pytest.mark.parametrize(
    ("board", "address", "frames"),
    [
        ("plain", 1, ["010500000000", "01050000FF00", "010500000000"]),
        ("lctech", 255, ["FF0500000000", "FF050000FF00", "FF0500000000"]),
        ("laskakit", 2, ["020600010200", "020600010100", "020600010200"]),
    ],
)
async def test_other_boards_are_switched_on_and_off(tmp_path, board, address, frames):
    """Where the board cannot time it, on and off are two commands."""
    peer = Peer(tmp_path / "port", 8, echo)
    told = Told()
    north = relay(tmp_path / "port", told, {}, board, address)
    north.open()
    await until(lambda: told.ups)
    north.pulse(60_000)
    await until(lambda: len(peer.heard) == 3)
    north.close(False)
    peer.unplug()
    assert peer.commands[:3] == [frame(text) for text in frames]
    assert peer.heard[2][0] - told.pulsed[0] / 1e6 >= 0.06


async def test_a_flash_whose_echo_is_lost_is_not_sent_twice(tmp_path):
    """The board may have pulsed: unknown is told, and a second person is not let in."""
    deaf: list[bool] = []
    peer = Peer(tmp_path / "port", 8, lambda command: b"" if deaf else echo(command))
    told = Told()
    north = relay(tmp_path / "port", told, {})
    north.open()
    await until(lambda: told.ups)
    deaf.append(True)
    north.pulse(500_000)
    await until(lambda: told.ups == [True, False])
    deaf.clear()
    await until(lambda: told.ups == [True, False, True])
    north.close(False)
    peer.unplug()
    assert peer.commands.count(FLASH_500_MS) == 1
    assert set(peer.commands) == {FLASH_500_MS, OFF_1}
    assert told.pulsed == []
    assert len(told.failed) == 1
    assert "unknown, not repeated" in told.failed[0]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda c: frame("018502"), "exception 2"),
        (lambda c: frame("010500070000"), "another question"),
        (lambda c: c[:6] + b"\0\0", "did not answer"),
        (lambda c: b"\x01\x05", "did not answer"),
        (lambda c: b"\xff" * 40, "did not answer"),
        (lambda c: frame("020500000000"), "did not answer"),
    ],
)
async def test_wrong_answers_are_a_board_that_is_down(tmp_path, answer, says):
    """Exceptions, foreign and damaged frames: a reason, no crash, no belief."""
    peer = Peer(tmp_path / "port", 8, answer)
    told = Told()
    north = relay(tmp_path / "port", told, {})
    north.open()
    await until(lambda: told.states)
    north.close(False)
    peer.unplug()
    assert told.states[0][0] is False
    assert says in told.states[0][1]
    assert "address 1" in told.states[0][1]


async def test_a_silent_board_does_not_take_its_line_down(tmp_path):
    """Two boards on one line, one without power: the other lane is up and pulses."""
    peer = Peer(tmp_path / "port", 8, lambda command: echo(command) if command[0] == 1 else b"")
    boards: dict[str, Board] = {}
    told, told_dead = Told(), Told()
    north = relay(tmp_path / "port", told, boards)
    dead = relay(tmp_path / "port", told_dead, boards, "plain", address=2)
    dead.open()
    north.open()
    await until(lambda: told.ups and told_dead.ups)
    dead.pulse(60_000)
    north.pulse(500_000)
    await until(lambda: told.pulsed and told_dead.failed)
    north.close(False)
    dead.close(False)
    peer.unplug()
    assert told.ups == [True]
    assert told_dead.ups == [False]
    assert frame("02050000FF00") not in peer.commands


async def test_a_lost_adapter_comes_back(tmp_path):
    """The USB adapter is pulled out and plugged in: down once, up once, off first."""
    peer = Peer(tmp_path / "port", 8, echo)
    told = Told()
    north = relay(tmp_path / "port", told, {})
    north.open()
    await until(lambda: told.ups)
    peer.unplug()
    await until(lambda: told.ups == [True, False])
    again = Peer(tmp_path / "port", 8, echo)
    await until(lambda: north.up)
    north.pulse(500_000)
    await until(lambda: told.pulsed)
    north.close(False)
    again.unplug()
    assert again.commands == [OFF_1, FLASH_500_MS, OFF_1]
    assert told.ups == [True, False, True]
