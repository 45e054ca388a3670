"""What is on this machine, as the dialogue wants it."""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gateway.readers.discover import Found, scanners
from gateway.setup.dialogue import Known, Relay, Scanner
from gateway.turnstile.discover import FoundBoard, boards

DATA_DIR = "/var/lib/gateway"
_ACTIVE_CONSOLES = Path("/sys/class/tty/console/active")


def find(
    before: dict[str, Any], data_dir: Path | None, named: Sequence[str], boards_at: Sequence[str]
) -> Known:
    """Looks at the machine. ``before``: the configuration that is replaced; ``data_dir``: None is the one
    there. Whoever names scanners (``named``, as DRIVER:PATH) or ports of boards (``boards_at``) knows what
    there is: nothing else of that kind is then looked for or touched."""
    found = [_named(*name.partition(":")[::2]) for name in named]
    relays = [Relay(f"a board at {path}", {"device": path}, os.path.realpath(path)) for path in boards_at]
    return Known(
        tuple(_scanner(scanner) for scanner in found or scanners() if not _is_console(scanner.device)),
        tuple(relays or (relay for board in boards() for relay in _relays(board))),
        () if relays else tuple(_chips()),
        re.sub(r"[^A-Za-z0-9_-]+", "-", socket.gethostname().partition(".")[0])[:64] or "gate",
        str(data_dir or before.get("gateway", {}).get("data_dir") or DATA_DIR),
        before,
    )


def _named(driver: str, device: str) -> Found:
    return Found(driver, device, "named on the command line")  # type: ignore[arg-type]


def shown(known: Known) -> Iterable[str]:
    """What was found, a line each."""
    yield f"{len(known.scanners)} scanner(s), or what may be one:"
    for scanner in known.scanners:
        barred = (
            "" if os.access(scanner.device, os.R_OK | os.W_OK) else " — may not be opened: run this as root"
        )
        yield f"  {scanner.driver:8} {scanner.description}, {scanner.device}{barred}"
    yield f"{len(known.relays) + len(known.chips)} relay(s), or where one may hang:"
    for relay in known.relays:
        yield f"  {relay.name}"
    for label, lines in known.chips:
        yield f"  GPIO chip {label}, {lines} lines"


def _scanner(found: Found) -> Scanner:
    return Scanner(found.driver, found.device, found.description, os.path.realpath(found.device))


def _is_console(device: str) -> bool:
    """Whether the kernel or a login speaks there: opening it would change that line's speed."""
    try:
        active = _ACTIVE_CONSOLES.read_text().split()
    except OSError:
        return False
    return os.path.basename(os.path.realpath(device)) in active


def _relays(board: FoundBoard) -> Iterable[Relay]:
    """Each relay of a board that says what it is; a port as it is; GPIO chips apart."""
    node = os.path.realpath(board.path)
    tables = [tomllib.loads(line)["relay"] for line in board.toml()]
    if tables and tables[0]["driver"] in ("serial", "modbus"):
        yield Relay(f"{board.name}, {board.path}", {"device": tables[0]["device"]}, node)
    elif tables and tables[0]["driver"] == "usbrelay":
        for table in tables:
            yield Relay(f"relay {table['channel']} of {board.name}", table, node)


def _chips() -> Iterable[tuple[str, int]]:
    from gateway.turnstile.gpio import list_chips

    return [(label, lines) for _, label, lines in list_chips()]
