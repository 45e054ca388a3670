"""``gateway devices`` and ``gateway doctor``: what is there, what is wrong, and what to do about it."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from gateway import control, doctor_central
from gateway.cache import generations
from gateway.config import Config, ReaderConfig
from gateway.configload import load
from gateway.findings import Finding
from gateway.host import clock_synchronised
from gateway.readers.discover import scanners
from gateway.turnstile.discover import boards

_ROOM = 200 * 1024 * 1024
"""Bytes free below which the ledger is in danger of filling the disk."""


def devices(*, as_json: bool) -> int:
    """Print every scanner and relay board; 0 also where there are none."""
    found_scanners, found_boards = scanners(), boards()
    if as_json:
        for scanner in found_scanners:
            _put({"type": "scanner", **asdict(scanner), "toml": scanner.toml("scanner", "POINT")})
        for board in found_boards:
            _put({"type": "relay", "name": board.name, "path": board.path, "toml": board.toml()})
        return 0
    _say(
        f"{len(found_scanners)} scanner(s)" + (":" if found_scanners else ". Plug one in and run this again.")
    )
    for number, scanner in enumerate(found_scanners, 1):
        _say(f"\n# {scanner.description}" + (f" — {scanner.note}" if scanner.note else ""))
        _say(scanner.toml(f"scanner-{number}", "POINT"))
    _say(f"\n{len(found_boards)} relay board(s)" + (":" if found_boards else "."))
    for board in found_boards:
        _say(f"\n# {board.name} ({board.path})")
        for line in board.toml():
            _say(line)
    if found_scanners or found_boards:
        _say("\nPut the lines that fit into gateway.toml; POINT is the name of a [[point]].")
        _say("A serial port may be a scanner's or a relay board's: only you can tell.")
    return 0


def doctor(path: Path, *, as_json: bool) -> int:
    """Print every finding; 0: nothing is at fault, 1: something is. Raises ConfigError."""
    config = load(path)
    faults = 0
    for finding in findings(config):
        faults += finding.state == "fault"
        if as_json:
            _put(asdict(finding))
            continue
        sign = {"ok": "ok     ", "warning": "WARNING", "fault": "FAULT  "}[finding.state]
        _say(f"{sign}  {finding.about}: {finding.found}")
        if finding.remedy:
            _say(f"         → {finding.remedy}")
    return 1 if faults else 0


def findings(config: Config) -> Iterator[Finding]:
    """Everything that can be seen from here, with a running gate or without."""
    yield Finding("configuration", "ok", f"{len(config.lanes)} lane(s), {len(config.readers)} reader(s)")
    data_dir = config.gateway.data_dir
    yield from _data_dir(data_dir)
    status = None
    try:
        with closing(control.Client(config.gateway.admin_socket or data_dir / "admin.sock")) as gate:
            status = gate.call("status")
        yield Finding("gate", "ok", f"running, version {status['version']}")
    except control.NoGate:
        yield Finding("gate", "warning", "not running", "systemctl start gateway, or gateway gate")
    except OSError as error:
        yield Finding("gate", "fault", f"its socket cannot be used: {error.strerror}", "run this as root")
    if status is not None:
        yield from _running(status)
    else:
        for reader in config.readers:
            yield _device(f"reader {reader.name}", reader)
    for lane in config.lanes:
        if lane.relay.device is not None:
            yield _path(f"relay of lane {lane.name}", lane.relay.device)
    if clock_synchronised():
        yield Finding("clock", "ok", "synchronised")
    else:
        yield Finding(
            "clock",
            "warning",
            "nobody keeps it right",
            "timedatectl set-ntp true, or a battery for the clock",
        )
    yield from doctor_central.findings(config, status)


def _data_dir(data_dir: Path) -> Iterator[Finding]:
    if not data_dir.is_dir():
        yield Finding("data_dir", "fault", f"{data_dir} is not there", f"install -d -m 700 {data_dir}")
        return
    mode = data_dir.stat().st_mode
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        yield Finding("data_dir", "warning", f"{data_dir} is open to others", f"chmod 700 {data_dir}")
    if not os.access(data_dir, os.W_OK):
        yield Finding(
            "data_dir", "fault", f"{data_dir} cannot be written", "run as the gate's user, or mend its rights"
        )
    free = shutil.disk_usage(data_dir).free
    enough = free > _ROOM
    yield Finding(
        "disk",
        "ok" if enough else "fault",
        f"{free // 1024 // 1024} MiB free",
        None if enough else "free some space: without it entries cannot be recorded",
    )
    key = data_dir / "code.key"
    if key.exists() and key.stat().st_mode & 0o077:
        yield Finding("code.key", "fault", "others may read it", f"chmod 600 {key}")
    numbers = generations.numbers(data_dir)
    if numbers and not key.exists():
        yield Finding(
            "code.key", "fault", "is missing: no card is found without it", "put it back, or import anew"
        )
    whole = [n for n in numbers if generations.passes(generations.path_of(data_dir, n))]
    if not whole:
        yield Finding("snapshot", "fault", "there is none", "gateway import FILE, or join a central")
    elif whole[0] != numbers[0]:
        yield Finding(
            "snapshot",
            "fault",
            f"generation {numbers[0]} is damaged; {whole[0]} serves",
            "gateway import FILE again",
        )
    else:
        yield Finding("snapshot", "ok", f"generation {whole[0]} is whole")
    for broken in sorted(data_dir.glob("ledger-broken-*.db")):
        yield Finding(
            "ledger",
            "warning",
            f"{broken.name} was set aside",
            "keep it until its events are known elsewhere",
        )


def _running(status: dict[str, Any]) -> Iterator[Finding]:
    for reader in status["readers"]:
        if reader["up"]:
            yield Finding(f"reader {reader['reader']}", "ok", reader["device"])
        else:
            yield _path(f"reader {reader['reader']}", reader["device"], down=True)
    for lane in status["lanes"]:
        if lane["fault"]:
            yield Finding(
                f"lane {lane['lane']}", "fault", lane["fault"], "look at cable and power of the relay board"
            )
        elif lane["state"] != "normal":
            yield Finding(
                f"lane {lane['lane']}",
                "warning",
                f"is {lane['state']}",
                f"gateway lane {lane['lane']} normal",
            )
        else:
            yield Finding(f"lane {lane['lane']}", "ok", "normal")
    yield from _snapshot_in_use(status["snapshot"])
    for contact in status["inputs"]:
        if contact["fault"]:
            yield Finding(contact["input"], "fault", contact["fault"], "look at its chip, line and wire")
        else:
            yield Finding(contact["input"], "ok", "is read")
    ledger = status["ledger"]
    if ledger["lost"]:
        yield Finding(
            "ledger", "warning", f"{ledger['lost']} events were lost since the start", "mend the disk first"
        )
    if ledger["fault"]:
        yield Finding("ledger", "fault", ledger["fault"], "free the disk, or replace the card")
    else:
        yield Finding(
            "ledger", "ok", f"{ledger['last_seq']} events, {ledger['pending']} on their way to the disk"
        )
    if status["clock"]["suspect"]:
        yield Finding(
            "clock", "fault", "behind what is known; judged by the newest known time", "set the clock"
        )


def _snapshot_in_use(snapshot: dict[str, Any] | None) -> Iterator[Finding]:
    if snapshot is None:
        yield Finding(
            "snapshot",
            "fault",
            "the gate uses none: every code is unknown to it",
            "gateway import FILE, or join a central",
        )
        return
    if snapshot["stale"]:
        yield Finding(
            "snapshot", "fault", "older than max_snapshot_age_h: nobody is admitted", "gateway import FILE"
        )
    for reason in snapshot["set_aside"]:
        yield Finding("snapshot", "warning", reason)


def _device(about: str, reader: ReaderConfig) -> Finding:
    if reader.driver == "stdin":
        return Finding(about, "ok", "standard input")
    return _path(about, reader.device)


def _path(about: str, device: str, *, down: bool = False) -> Finding:
    path = Path(device)
    if not path.exists():
        return Finding(about, "fault", f"{device} is not there", "plug it in; gateway devices lists what is")
    if not os.access(path, os.R_OK | os.W_OK):
        return Finding(
            about, "fault", f"{device} may not be opened", "check the udev rules and the user's groups"
        )
    if down:
        return Finding(
            about, "fault", f"{device} is there but not open", "see the journal: journalctl -u gateway"
        )
    return Finding(about, "ok", device)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _put(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
