"""One pulse of one relay, through the gate's own drivers."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from gateway.config import RelayConfig
from gateway.configkeys import RELAY, Wrong
from gateway.turnstile.build import make_relay
from gateway.turnstile.relay import RelayCallbacks

PULSE: Final = 300_000
"""Microseconds."""
_PATIENCE: Final = 5.0


def click(table: dict[str, Any], pulse: int = PULSE) -> str:
    """Pulse it once and let go of it. Gives "", or why it cannot be said that it clicked.

    ``table``: as in the configuration. A pulse is never repeated."""
    try:
        config = _config(table)
    except Wrong as wrong:
        return wrong.what
    return asyncio.run(_click(config, pulse))


def _config(table: dict[str, Any]) -> RelayConfig:
    driver = str(table["driver"])
    values = {}
    for name, value in table.items():
        if name != "driver" and (key := RELAY[driver].get(name)) is not None:
            values[key.field or name] = key.read(value)
    return RelayConfig(driver=driver, **values)  # type: ignore[arg-type]


async def _click(config: RelayConfig, pulse: int) -> str:
    told: asyncio.Queue[str] = asyncio.Queue()
    """What came: "up", "pulsed", or a reason."""
    callbacks = RelayCallbacks(
        on_state=lambda up, reason: told.put_nowait("up" if up else reason),
        on_failed=told.put_nowait,
        on_pulsed=lambda _: told.put_nowait("pulsed"),
    )
    try:
        relay = make_relay(config, asyncio.get_running_loop(), callbacks, {})
    except ValueError as error:
        return str(error)
    relay.open()
    try:
        async with asyncio.timeout(_PATIENCE):
            if (said := await told.get()) != "up":
                return said
            relay.pulse(pulse)
            if (said := await told.get()) != "pulsed":
                return said
        await asyncio.sleep(pulse / 1e6)
        return "" if told.empty() else told.get_nowait()
    except TimeoutError:
        return "the board does not answer"
    finally:
        relay.close(on=False)
