"""What the machine says of itself: versions, units, journal, kernel, devices. Nothing of it is changed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from gateway import __version__
from gateway.host import clock_synchronised
from gateway.readers.discover import scanners
from gateway.support.scrub import Scrub
from gateway.turnstile.discover import boards
from gateway.units import UNITS

SINCE: Final = "-26h"
MOST_LINES: Final = 20_000
_PATIENCE: Final = 30.0
_PROPERTIES: Final = re.findall(
    r"\w+",
    "Id LoadState ActiveState SubState UnitFileState Result NRestarts ExecMainStatus "
    "ExecMainCode ActiveEnterTimestamp InactiveEnterTimestamp StateChangeTimestamp "
    "MemoryCurrent MemoryPeak CPUUsageNSec TasksCurrent WatchdogUSec NeedDaemonReload",
)
_KERNEL: Final = re.compile(
    "usb|tty|mmc|hid|cdc_acm|ch341|ftdi|gpio|under-?voltage|I/O error|EXT4-fs|read-only|oom-kill",
    re.IGNORECASE,
)
# A keyboard of a person may be called after its owner; those come by Bluetooth (bus 5), or as "input: NAME".
_NOT_KERNEL: Final = re.compile(r"bluetooth|\b0005:|input: ", re.IGNORECASE)


class CommandFailed(Exception):
    """A command of the system did not do its work; the message says which and why."""


def run(*command: str) -> str:
    """The output of a command of the system. Raises CommandFailed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
            check=False,
        )
    except FileNotFoundError:
        raise CommandFailed(f"there is no {command[0]} here") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandFailed(f"{command[0]}: {type(error).__name__}") from None
    if done.returncode != 0:
        raise CommandFailed(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[:200]}")
    return done.stdout


def versions() -> dict[str, Any]:
    """Program, Python, packages, kernel, operating system, machine."""
    release = platform.freedesktop_os_release()
    return {
        "gateway": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {
            name: found.version
            for found in sorted(importlib.metadata.distributions(), key=lambda one: one.name.lower())
            if re.fullmatch(r"[A-Za-z0-9._-]+", name := found.name)
        },
        "system": {key: release[key] for key in ("ID", "VERSION_ID", "PRETTY_NAME") if key in release},
        "kernel": platform.release(),
        "machine": platform.machine(),
        "model": _line(Path("/sys/firmware/devicetree/base/model"))
        or _line(Path("/sys/class/dmi/id/product_name")),
        "byteorder": sys.byteorder,
    }


def health(data_dir: Path | None) -> dict[str, Any]:
    """Load, memory, disk, clock."""
    uptime = float(_line(Path("/proc/uptime")).split()[0])
    memory = dict(
        re.findall(
            r"^(MemTotal|MemAvailable|SwapTotal|SwapFree):\s+(\d+) kB", _text(Path("/proc/meminfo")), re.M
        )
    )
    found: dict[str, Any] = {
        "uptime_s": round(uptime),
        "cpus": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "memory_kib": {name: int(value) for name, value in memory.items()},
        "clock_synchronised": clock_synchronised(),
        "pressure": {what: _line(Path("/proc/pressure") / what) for what in ("cpu", "io", "memory")},
    }
    if data_dir is not None and data_dir.exists():
        disk, inodes = shutil.disk_usage(data_dir), os.statvfs(data_dir)
        found["disk"] = {"total": disk.total, "free": disk.free, "inodes_free": inodes.f_favail}
        found["disk"]["read_only"] = bool(inodes.f_flag & os.ST_RDONLY)
    return found


def units() -> dict[str, dict[str, str]]:
    """How systemd sees the units. Neither their environment nor their command line. Raises CommandFailed."""
    told: dict[str, dict[str, str]] = {}
    for unit in UNITS:
        lines = run("systemctl", "show", unit, *(f"--property={name}" for name in _PROPERTIES)).splitlines()
        told[unit] = {
            name: value for name, _, value in (line.partition("=") for line in lines) if name in _PROPERTIES
        }
    return told


def journal(scrub: Scrub) -> str:
    """The last day of the units' journal, NDJSON, the newest lines. Raises CommandFailed."""
    named = [f"--unit={unit}" for unit in UNITS]
    out = run(
        "journalctl", *named, f"--since={SINCE}", f"--lines={MOST_LINES}", "--output=json", "--no-pager"
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _entries(out, scrub))


def _entries(out: str, scrub: Scrub) -> Iterator[dict[str, Any]]:
    for line in out.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        message = entry.get("MESSAGE")
        if isinstance(message, list):  # bytes that are no UTF-8, as numbers
            message = "(not text)"
        at, unit = str(entry.get("__REALTIME_TIMESTAMP", "")), entry.get("_SYSTEMD_UNIT") or entry.get("UNIT")
        said = scrub.journal_entry(entry)
        if not said and isinstance(message, str):
            said = scrub.log_line(message)
        kept = {"at_us": int(at)} if re.fullmatch(r"\d{16}", at) else {}
        yield {**kept, "unit": unit if unit in UNITS else None, **said}


def kernel() -> str:
    """What the kernel said of ports, cards and disks. Raises CommandFailed."""
    lines = run("dmesg").splitlines()[-MOST_LINES:]
    return "".join(f"{line}\n" for line in lines if _KERNEL.search(line) and not _NOT_KERNEL.search(line))


def devices() -> dict[str, Any]:
    """What ``gateway devices`` finds; names of keyboards are left out, for they may be a person's."""
    return {
        "scanners": [
            {
                "driver": found.driver,
                "device": found.device,
                "name": found.description if found.driver != "keyboard" else _ids(found.description),
                "note": found.note,
            }
            for found in scanners()
        ],
        "relays": [{"name": board.name, "path": board.path} for board in boards()],
    }


def _ids(description: str) -> str:
    found = re.search(r"\([0-9a-f]{4}:[0-9a-f]{4}\)$", description)
    return f"keyboard {found[0]}" if found else "keyboard"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _line(path: Path) -> str:
    return _text(path).strip("\0\n ").partition("\n")[0]
