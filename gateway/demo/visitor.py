"""``python -m gateway.demo.visitor CONFIG``: the demo's gate, an ordinary one, and its visitor.

Whoever the lane opens for walks through.
Sensor and lane in memory live in the process of their gate, so the visitor does too.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from gateway import log
from gateway.config import Config
from gateway.configload import ConfigError, load
from gateway.daemon import Daemon
from gateway.host import DataDirError
from gateway.model import LaneMode
from gateway.turnstile.relay import MemoryInput, MemoryRelay

WALK = 0.4
"""Seconds from the lane's opening to the visitor's passage."""


def let_walk(daemon: Daemon) -> None:
    """Whenever the lane opens for somebody, they go through shortly after."""
    [(lane, relay)] = daemon.relays.items()
    [sensor] = daemon.inputs
    assert isinstance(relay, MemoryRelay)
    assert isinstance(sensor, MemoryInput)

    def changed(_at: int, on: bool) -> None:
        if on and daemon.gate.lanes[lane].lane.mode is not LaneMode.FREE:
            daemon.loop.call_later(WALK, sensor.fire)

    relay.on_change = changed


async def _serve(config: Config) -> int:
    daemon = Daemon(config)
    await daemon.start()
    let_walk(daemon)
    try:
        status = await daemon.wait()
        if status == 0:
            await daemon.finish()
        return status
    finally:
        daemon.close()


def main(config: Path) -> int:
    """Run the gate until SIGTERM; the exit status is that of ``gateway gate``."""
    writer = log.start()
    try:
        return asyncio.run(_serve(load(config)))
    except (ConfigError, DataDirError, OSError) as error:
        print(f"gateway: {error}", file=sys.stderr)  # noqa: T201 - as the command line says it
        return 2
    finally:
        writer.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
