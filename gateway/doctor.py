"""``gateway devices`` and ``gateway doctor``: what is there, what is wrong, and what to do about it."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from gateway import control, doctor_central, doctor_gate, doctor_machine
from gateway.cache import generations
from gateway.config import Config
from gateway.configload import load
from gateway.findings import Finding
from gateway.host import clock_synchronised
from gateway.readers.discover import scanners
from gateway.turnstile.discover import boards
from gateway.units import Units

_SOON = 0.75
"""The part of max_snapshot_age_h from which on somebody should see to new cards."""


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
    for finding in findings(config, path):
        faults += finding.state == "fault"
        if as_json:
            _put(asdict(finding))
            continue
        sign = {"ok": "ok     ", "warning": "WARNING", "fault": "FAULT  "}[finding.state]
        _say(f"{sign}  {finding.about}: {finding.found}")
        if finding.remedy:
            _say(f"         → {finding.remedy}")
    return 1 if faults else 0


def findings(config: Config, path: Path, units: Units | None = None) -> Iterator[Finding]:
    """All that can be seen from here, with a running gate or without. ``path``: of the configuration.

    Raises PermissionError where this user may not look into the data_dir: what else it could say would be
    about the user, not about the gate.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        os.listdir(config.gateway.data_dir)
    yield Finding("configuration", "ok", f"{len(config.lanes)} lane(s), {len(config.readers)} reader(s)")
    units = units or Units()
    data_dir = config.gateway.data_dir
    user = doctor_machine.account(data_dir, units)
    yield from doctor_machine.configuration(path, user)
    if config.state_dir.is_dir():
        yield from doctor_machine.configuration(path, doctor_machine.account(config.state_dir))
    yield from _data_dir(data_dir)
    yield from doctor_machine.service(units, config)
    status, metrics, refused = None, "", []
    try:
        with closing(control.Client(config.gateway.admin_socket or data_dir / "admin.sock")) as gate:
            status = gate.call("status")
            metrics = gate.call("metrics")["text"]
            refused = gate.call("refused")["events"]
        yield Finding("gate", "ok", f"running, version {status['version']}")
    except control.NoGate:
        yield Finding("gate", "warning", "not running", "systemctl start gateway, or gateway gate")
    except OSError as error:
        yield Finding("gate", "fault", f"its socket cannot be used: {error.strerror}", "run this as root")
    if status is not None:
        yield from _running(config, status, user)
        yield from doctor_gate.counters(metrics)
        yield from doctor_gate.refused(refused)
        yield from doctor_gate.older_configuration(path, metrics)
    else:
        yield from doctor_gate.ledger(data_dir, config.gateway.id)
        for reader in config.readers:
            yield doctor_machine.reader(reader, user)
    for lane in config.lanes:
        if (looked := doctor_machine.relay(lane, user, running=status is not None)) is not None:
            yield looked
    yield from doctor_machine.undriven_usb()
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
    yield from doctor_machine.disk(data_dir)
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


def _running(config: Config, status: dict[str, Any], user: doctor_machine.Account) -> Iterator[Finding]:
    for reader in status["readers"]:
        about = f"reader {reader['reader']}"
        if reader["up"]:
            yield Finding(about, "ok", reader["device"])
        elif reader["device"] == "-":
            yield Finding(about, "fault", "the input has ended", "start the gate anew")
        else:
            yield doctor_machine.device(about, reader["device"], user, is_open=False)
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
    yield from _snapshot_in_use(config, status["snapshot"])
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


def _snapshot_in_use(config: Config, snapshot: dict[str, Any] | None) -> Iterator[Finding]:
    if snapshot is None:
        if generations.numbers(config.gateway.data_dir):  # else it was said that there is none
            yield Finding(
                "snapshot",
                "fault",
                "the gate uses none: every code is unknown to it",
                "gateway import FILE, or join a central",
            )
        return
    newer = "gateway import FILE" if config.central is None else "see the findings of sync and central"
    hours, most = snapshot["age_s"] / 3600, config.gateway.max_snapshot_age_h
    if snapshot["stale"]:
        yield Finding("snapshot", "fault", "older than max_snapshot_age_h: nobody is admitted", newer)
    elif most is not None and hours > _SOON * most:
        what = "nobody is admitted" if config.gateway.on_stale == "deny" else "it is stale"
        yield Finding(
            "snapshot",
            "warning",
            f"is {hours:.1f} h old; from {most:g} h on (max_snapshot_age_h) {what}",
            newer,
        )
    for reason in snapshot["set_aside"]:
        yield Finding("snapshot", "warning", reason)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _put(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
