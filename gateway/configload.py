"""Reads the configuration: TOML to the values of ``gateway.config``; every fault at once.

A fault names the file, the key, its line and what to do. Nothing here looks at the disk or at a device,
apart from reading the file: a configuration can be checked on another machine than the one that it is
for. ``gateway doctor`` looks at the machine.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.config import (
    CentralConfig,
    Config,
    GatewayConfig,
    InputConfig,
    LaneConfig,
    PointConfig,
    ReaderConfig,
    RelayConfig,
    WebConfig,
)
from gateway.configcheck import SOCKETS, Checker, Row
from gateway.configkeys import join
from gateway.model import AntiPassback, Point

_TABLES = ("gateway", "central", "web", "lane", "point", "reader", "messages")


@dataclass(slots=True, frozen=True)
class Fault:
    """One thing that is wrong with the configuration."""

    key: str
    """Such as ``lane[0].relay.chip``, counted from 0; "" where the file as a whole is meant."""
    message: str
    """What is wrong; after the semicolon what to do about it."""
    line: int | None = None
    """Where the key stands, or the table that it is missing from; None where that is nowhere."""


class ConfigError(Exception):
    """The configuration cannot be used. ``str()`` has one line for each fault, with file and key."""

    def __init__(self, source: str, faults: list[Fault]) -> None:
        super().__init__(source, faults)
        self.source = source
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(
            f"{self.source}: "
            + (fault.key + (f" (line {fault.line})" if fault.line else "") + ": " if fault.key else "")
            + fault.message
            for fault in self.faults
        )


# --- lines ----------------------------------------------------------------------------------------


def _paths(where: str, value: object) -> list[str]:
    """The paths of everything inside a value."""
    found: list[str] = []
    if isinstance(value, dict):
        for name, inner in value.items():
            found += [join(where, name), *_paths(join(where, name), inner)]
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found += [f"{where}[{number}]", *_paths(f"{where}[{number}]", inner)]
    return found


def key_lines(text: str) -> dict[str, int]:
    """On which line (from 1) each key of a valid TOML text stands.

    tomllib tells no lines. But each statement of a TOML text is valid TOML by itself, and none is before
    its last line: so the shortest runs of lines that parse are the statements, and each tells its keys.
    """
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    start, lines = 0, text.replace("\r\n", "\n").split("\n")
    for end in range(1, len(lines) + 1):
        if end - start > 200:  # each line more parses the statement anew: give up rather than be slow
            return found
        try:
            statement = tomllib.loads("\n".join(lines[start:end]))
        except (ValueError, RecursionError):
            continue
        first, start = start + 1, end
        if not lines[first - 1].lstrip().startswith("["):
            for path in _paths(table, statement):
                found.setdefault(path, first)
            continue
        table, value = "", statement
        while value:
            ((name, inner),) = value.items()
            table = join(table, name)
            if isinstance(inner, list):
                counts[table] = counts.get(table, -1) + 1
                value = inner[0]
            else:
                value = inner
            found.setdefault(table, first)
            if table in counts:
                table = f"{table}[{counts[table]}]"
                found.setdefault(table, first)
    return found


def _line_of(lines: Mapping[str, int], key: str) -> int | None:
    """The line of a key, or of the nearest table around it."""
    around = [path for path in lines if key == path or key.startswith((f"{path}.", f"{path}["))]
    return lines[max(around, key=len)] if around else None


# --- the loader -----------------------------------------------------------------------------------


def load(path: Path, *, replay: bool = False) -> Config:
    """Reads the configuration file at ``path``; see ``loads``. What cannot be read is a fault as well."""
    source = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")  # some editors put a byte order mark in front
    except FileNotFoundError:
        fault = Fault("", "is not there; gateway setup writes one, and --config names another")
        raise ConfigError(source, [fault]) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        remedy = "run this with sudo, or see that this user may read it; --config names another"
        raise ConfigError(source, [Fault("", f"cannot be read ({reason}); {remedy}")]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        fault = Fault("", f"line {line}: is not UTF-8; save the file with the encoding UTF-8")
        raise ConfigError(source, [fault]) from None
    return loads(text, source, replay=replay)


def loads(text: str, source: str, *, replay: bool = False) -> Config:
    """Takes the text of a configuration and gives its values; ``source`` names it in the messages.

    With ``replay`` no reader is needed and the data_dir is not looked at (DESIGN.md 5: a point counts as
    one reader). Raises ConfigError, with every fault there is.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(source, [Fault("", "is nested too deeply; remove some brackets")]) from None
    except ValueError as error:
        raise ConfigError(source, [_syntax_fault(text, error)]) from None

    check = Checker(replay)
    for name in [name for name in data if name not in _TABLES]:
        check.unknown("", name, _TABLES)
    gateway = check.gateway(data.get("gateway"))
    central = check.central(data["central"]) if "central" in data else None
    web = check.web(data.get("web", {}))
    lanes = check.lanes(data.get("lane"))
    points = check.points(data.get("point"), check.names(lanes))
    readers = check.readers(data.get("reader"), check.names(points))
    check.names(readers)
    messages = check.messages(data.get("messages", {}))
    check.contacts(lanes, points)
    check.channels(lanes)
    check.devices(lanes, readers)
    if check.faults:
        lines = key_lines(text)
        faults = [Fault(key, message, _line_of(lines, key)) for key, message in check.faults]
        raise ConfigError(source, sorted(faults, key=lambda fault: fault.line or 0))
    return Config(
        gateway=_gateway(gateway),
        lanes=tuple(_lane(row) for _, row in lanes),
        points=tuple(_point(row) for _, row in points),
        readers=tuple(ReaderConfig(**row) for _, row in readers),
        central=_central(central) if central else None,
        web=WebConfig(**web),
        messages=messages,
    )


def _syntax_fault(text: str, error: ValueError) -> Fault:
    """tomllib tells the place inside its message, and in words at the end of the text."""
    what = str(error)
    place = ""
    if found := re.search(r"\(at line (\d+), column (\d+)\)$", what):
        place = f"line {found[1]}, column {found[2]}: "
    elif what.endswith("(at end of document)"):
        last = text.rstrip("\n").split("\n")
        place = f"line {len(last)}, column {len(last[-1]) + 1}: "
    what = re.sub(r" \(at [^()]*\)$", "", what)
    return Fault(
        "",
        f"{place}is not valid TOML ({what}); correct it there or just before: texts stand in "
        '"quotes", brackets and quotes are closed, and a key stands once in its table',
    )


def _gateway(row: Row) -> GatewayConfig:
    values = dict(row)
    for name in ("data_dir", *SOCKETS):
        if name in values:
            values[name] = Path(values[name])
    return GatewayConfig(**values)


def _central(row: Row) -> CentralConfig:
    files: Row = {name: Path(value) for name, value in row.items() if name != "url"}
    return CentralConfig(url=row["url"], **files)


def _lane(row: Row) -> LaneConfig:
    values = dict(row)
    values["relay"] = RelayConfig(**values["relay"])
    for name in ("passage", "emergency"):
        if name in values:
            values[name] = InputConfig(**values[name])
    return LaneConfig(**values)


def _point(row: Row) -> PointConfig:
    values = dict(row)
    passage = values.pop("passage", None)
    values["anti_passback"] = AntiPassback(values.get("anti_passback", "off"))
    values["unknown_at_exit_open"] = values.pop("unknown_at_exit", "open") == "open"
    return PointConfig(Point(**values), InputConfig(**passage) if passage else None)
