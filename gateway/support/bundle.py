"""``gateway support-bundle``: gathers, leaves out, packs. What fails is noted, and the rest goes on."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import sqlite3
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from gateway import __version__, control
from gateway.cache.codekey import CodeKeyError
from gateway.cache.generations import SnapshotError
from gateway.config import Config
from gateway.configkeys import known_keys
from gateway.configload import ConfigError, load
from gateway.doctor import findings
from gateway.host import DataDirError
from gateway.support import machine, stores
from gateway.support.machine import CommandFailed
from gateway.support.scrub import GONE, Scrub
from gateway.trust import TrustError

_PATIENCE: Final = 10.0
_MOST: Final = 8 * 1024 * 1024
"""Bytes of the sync's page."""
_METRIC = re.compile(r"(# (HELP|TYPE|UNIT) )?(gateway|process|python)_")
_FAULTS: Final = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    sqlite3.Error,
    CommandFailed,
    control.CallError,
    control.NoGate,
    DataDirError,
    CodeKeyError,
    SnapshotError,
    TrustError,
)
"""What a part may raise, on a machine where anything may be broken."""

README: Final = """\
A support bundle of the entry-scan gateway, made by gateway support-bundle.

In it: versions, the configuration without comments and without the venue's own texts, the journal of the
last day, metrics, status, sizes and counts of the stores, gateway doctor's findings, devices, units, and
kernel messages about ports, cards and disks.

Not in it: codes, and anything that a code could be found out from; names of people; tokens, keys and one-time
codes; the environment. Cards and people are p-… names, which mean something in this bundle alone. In free
text each word that is not the program's own, or of the configuration, is {gone}.

failures.json says which part could not be had, and why.
"""


class BundleError(Exception):
    """The bundle cannot be written; the message says why."""


class _Gathered:
    """The members so far, and what went wrong."""

    def __init__(self, scrub: Scrub) -> None:
        self.scrub = scrub
        self.members: dict[str, bytes] = {}
        self.failures: dict[str, str] = {}

    def add(self, name: str, make: Callable[[], Any]) -> None:
        try:
            made = make()
        except _FAULTS as fault:
            self.failures[name] = f"{type(fault).__name__}: {self.scrub.words(str(fault))}"
            return
        text = made if isinstance(made, str) else json.dumps(made, indent=1, ensure_ascii=False, default=str)
        self.members[name] = self.scrub.sweep(text).encode(errors="replace")


def bundle(config_path: Path, output: Path | None) -> tuple[Path, dict[str, str]]:
    """Write the bundle. Gives its path, and what could not be had. Raises BundleError.

    Works with a gate, without one, and without a configuration that can be read."""
    config, wrong = _config(config_path)
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    id_ = "gateway" if config is None else config.gateway.id
    path = output or Path(f"support-{id_}-{at}.tar.gz")
    if path.exists():
        raise BundleError(f"{path} is there already; remove it, or give another --output")
    gathered = _gather(config_path, config, wrong)
    try:
        _pack(path, gathered, f"support-{at}")
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; give another place with --output") from None
    return path, gathered.failures


def _config(path: Path) -> tuple[Config | None, ConfigError | None]:
    try:
        return load(path), None
    except ConfigError as error:
        return None, error


def _gather(config_path: Path, config: Config | None, wrong: ConfigError | None) -> _Gathered:
    names = [str(config_path)] if config is None else _names(config, config_path)
    known = [] if config is None else stores.secrets(config)
    scrub = Scrub(names, known, secrets.token_bytes(32))
    gathered = _Gathered(scrub)
    status: dict[str, Any] | None = None

    def asked() -> dict[str, Any]:
        nonlocal status
        assert config is not None
        with _gate(config) as gate:
            status = gate.call("status", timeout=_PATIENCE)
        return {**scrub.each(status), "snapshot": _without(scrub.each(status["snapshot"]), "cursor")}

    gathered.add("versions.json", machine.versions)
    gathered.add("machine.json", lambda: machine.health(None if config is None else config.gateway.data_dir))
    gathered.add("units.json", machine.units)
    gathered.add("journal.ndjson", lambda: machine.journal(scrub))
    gathered.add("kernel.txt", machine.kernel)
    gathered.add("devices.json", machine.devices)
    if config is None:
        assert wrong is not None
        gathered.add("configuration.json", lambda: _what_is_wrong(wrong))
        return gathered
    data_dir = config.gateway.data_dir
    gathered.add("configuration.json", lambda: _configuration(config))
    gathered.add("status.json", asked)
    gathered.add("metrics-gate.txt", lambda: _metrics_of_gate(config))
    gathered.add("metrics-sync.txt", lambda: _metrics_of_sync(config))
    gathered.add(
        "doctor.json", lambda: [scrub.each(asdict(found)) for found in findings(config, config_path)]
    )
    gathered.add("files.json", lambda: {"data_dir": stores.files(data_dir), "state_dir": _state(config)})
    gathered.add("ledger.json", lambda: stores.ledger(data_dir))
    gathered.add("snapshots.json", lambda: stores.snapshots(data_dir, running=status is not None))
    gathered.add("central.json", lambda: stores.trust(data_dir))
    return gathered


def _names(config: Config, path: Path) -> list[str]:
    """What the configuration calls things: these words may be said."""
    gateway, central = config.gateway, config.central
    return [
        str(path),
        gateway.id,
        str(gateway.data_dir),
        *(str(socket) for socket in (gateway.admin_socket, gateway.sync_socket, config.state_dir) if socket),
        *([central.url] if central is not None else []),
        config.web.listen,
        *(lane.name for lane in config.lanes),
        *(text for lane in config.lanes for text in (lane.relay.device, lane.relay.chip) if text),
        *(text for each in config.points for text in (each.point.name, each.point.from_, each.point.to)),
        *(text for reader in config.readers for text in (reader.name, reader.device)),
    ]


def _configuration(config: Config) -> dict[str, Any]:
    """The values that the gateway uses: comments are none, and of its own texts only which there are."""
    found: dict[str, Any] = asdict(config)
    found["messages"] = {language: sorted(texts) for language, texts in config.messages.items()}
    return found


def _what_is_wrong(error: ConfigError) -> dict[str, Any]:
    """Keys and lines of the faults. Their messages quote what stands there, which may be anything."""
    known = {key for keys in known_keys().values() for key in keys} | set(known_keys()) | {"lane", "point"}
    return {
        "cannot_be_used": [
            {
                "key": fault.key
                if all(part in known for part in re.sub(r"\[\d+\]", "", fault.key).split(".") if part)
                else "(an unknown key)",
                "line": fault.line,
            }
            for fault in error.faults
        ]
    }


def _gate(config: Config) -> control.Client:
    path = config.gateway.admin_socket or config.gateway.data_dir / "admin.sock"
    return control.Client(path, timeout=_PATIENCE)


def _metrics_of_gate(config: Config) -> str:
    with closing(_gate(config)) as gate:
        return _only_metrics(gate.call("metrics", timeout=_PATIENCE)["text"])


def _metrics_of_sync(config: Config) -> str:
    host, port = config.web.address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_PATIENCE) as page:
        return _only_metrics(page.read(_MOST).decode(errors="replace"))


def _only_metrics(text: str) -> str:
    """Another program may serve a page of its own there."""
    return "".join(f"{line}\n" for line in text.splitlines() if _METRIC.match(line))


def _state(config: Config) -> list[dict[str, Any]]:
    return stores.files(config.state_dir) if config.state_dir.is_dir() else []


def _without(value: Any, key: str) -> Any:
    return {name: inner for name, inner in value.items() if name != key} if isinstance(value, dict) else value


def _pack(path: Path, gathered: _Gathered, folder: str) -> None:
    """Whole or not at all, and for nobody else to read."""
    part = path.with_name(f".{path.name}.part")
    text = README.format(gone=GONE) + f"\nversion {__version__}\n"
    failures = json.dumps(gathered.failures, indent=1, ensure_ascii=False)
    members = {
        "README.txt": text.encode(),
        **gathered.members,
        "failures.json": gathered.scrub.sweep(failures).encode(),
    }
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            with tarfile.open(fileobj=file, mode="w:gz") as tar:
                for name, data in members.items():
                    entry = tarfile.TarInfo(f"{folder}/{name}")
                    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                    tar.addfile(entry, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def support_bundle(config_path: Path, output: Path | None) -> int:
    """The command; its path goes to standard output. Raises BundleError."""
    path, failures = bundle(config_path, output)
    for name, why in failures.items():
        sys.stderr.write(f"gateway: {name} could not be had: {why}\n")
    sys.stderr.write(
        "gateway: no code, name or key is in it; look through it before you send it all the same: "
        f"tar -xzOf {path} | less\n"
    )
    sys.stdout.write(json.dumps({"bundle": str(path), "failed": sorted(failures)}) + "\n")
    return 0
