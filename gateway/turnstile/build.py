"""From the configuration to relays and inputs. Each driver, with the library under it, is imported only
when it is configured: starting up is quicker, and a library that is missing hurts only those who need it."""

from __future__ import annotations

import asyncio

from gateway.config import InputConfig, RelayConfig
from gateway.turnstile.board import Board, BoardRelay
from gateway.turnstile.relay import Input, InputCallbacks, MemoryInput, MemoryRelay, Relay, RelayCallbacks


def make_relay(
    config: RelayConfig, loop: asyncio.AbstractEventLoop, callbacks: RelayCallbacks, boards: dict[str, Board]
) -> Relay:
    """The relay, not opened yet. Lanes that share a board share its entry in ``boards``, which the caller
    keeps (empty at first). Raises ValueError, naming key and remedy, for what no board can be."""
    match config.driver:
        case "memory":
            return MemoryRelay(loop, callbacks)
        case "gpio":
            from gateway.turnstile.gpio import GpioRelay

            chip, line = _line(config)
            return GpioRelay(chip, line, config.active_low, loop, callbacks)
        case "usbrelay":
            return _usb(config, loop, callbacks, boards)
        case "serial":
            return _serial(config, loop, callbacks, boards)
        case "modbus":
            return _modbus(config, loop, callbacks, boards)


def make_input(config: InputConfig, loop: asyncio.AbstractEventLoop, callbacks: InputCallbacks) -> Input:
    """The input, not opened yet. Raises ValueError as ``make_relay``."""
    if config.driver == "memory":
        return MemoryInput(loop, callbacks)
    from gateway.turnstile.gpio import GpioInput

    chip, line = _line(config)
    debounce = config.debounce_ms * 1000
    return GpioInput(chip, line, config.active_low, config.bias, debounce, loop, callbacks)


def _line(config: RelayConfig | InputConfig) -> tuple[str, int | str]:
    if config.chip is None or config.line is None:
        raise ValueError('driver "gpio" needs chip and line: `gateway devices` lists the chips')
    return config.chip, config.line


def _device(config: RelayConfig) -> str:
    if config.device is None:
        raise ValueError(f'driver "{config.driver}" needs device: `gateway devices` lists the ports')
    return config.device


def _usb(
    config: RelayConfig, loop: asyncio.AbstractEventLoop, callbacks: RelayCallbacks, boards: dict[str, Board]
) -> Relay:
    from gateway.turnstile.usbrelay import UsbContact, UsbLink

    name = config.device or f"USB relay board {config.board or ''}".rstrip()
    board = boards.setdefault(name, Board(name, UsbLink(config.device, config.board)))
    if not isinstance(board.link, UsbLink):
        raise _two_drivers(name)
    return BoardRelay(board, UsbContact(board.link, config.channel), loop, callbacks)


def _serial(
    config: RelayConfig, loop: asyncio.AbstractEventLoop, callbacks: RelayCallbacks, boards: dict[str, Board]
) -> Relay:
    from gateway.turnstile.serialrelay import SerialLink, serial_contact

    name = _device(config)
    kind = config.board or "lcus"
    board = boards.setdefault(name, Board(name, SerialLink(name, config.baudrate, kind)))
    if not isinstance(board.link, SerialLink):
        raise _two_drivers(name)
    if (board.link.board, board.link.baudrate) != (kind, config.baudrate):
        raise ValueError(f"{name} is one board: every relay on it needs the same board and baudrate")
    return BoardRelay(board, serial_contact(board.link, config.channel), loop, callbacks)


def _modbus(
    config: RelayConfig, loop: asyncio.AbstractEventLoop, callbacks: RelayCallbacks, boards: dict[str, Board]
) -> Relay:
    from gateway.turnstile.modbus import ModbusContact, ModbusLink

    name = _device(config)
    board = boards.setdefault(name, Board(name, ModbusLink(name, config.baudrate)))
    if not isinstance(board.link, ModbusLink):
        raise _two_drivers(name)
    if board.link.baudrate != config.baudrate:
        raise ValueError(f"{name} is one line: every board on it needs the same baudrate")
    contact = ModbusContact(board.link, config.address, config.board or "plain", config.channel)
    return BoardRelay(board, contact, loop, callbacks)


def _two_drivers(name: str) -> ValueError:
    return ValueError(f"{name} is configured with two drivers: one device has one driver")
