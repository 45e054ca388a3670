"""A real central and a real sync beside the gate of ``rig``: the ordinary commands, each a process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import rig
from bench.row import WORK

COMMAND = [sys.executable, "-m", "gateway"]


def until(holds: Callable[[], Any], what: str, seconds: float, pause: float = 0.02) -> Any:
    """Poll until something holds, and give it back."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"in vain: {what}")
        time.sleep(pause)
    return found


class Process:
    """One command that runs."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*COMMAND, *arguments], cwd=rig.ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self.pid = self.process.pid

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Central(Process):
    """``gateway central serve`` on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        address = folder / "address"
        address.unlink(missing_ok=True)
        super().__init__(
            folder.with_suffix(".log"), "central", "serve", "--data", str(folder), "--listen", "127.0.0.1:0"
        )
        self.url: str = until(
            lambda: address.exists() and address.read_text().strip(), f"central; see {self.log}", 60
        )
        self._token = (folder / "admin.token").read_text().strip()

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A call of the admin API."""
        text = self._open(method, f"/admin/v1{path}", None if body is None else json.dumps(body).encode())
        return json.loads(text) if text else None

    def _open(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, method=method, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: bytes = answer.read()
        return text

    def code(self, gateway: str) -> str:
        """A one-time code for a gateway."""
        code: str = self.ask("POST", "/venues/main/enrolment-codes", {"gateway": gateway, "ttl_s": 3600})[
            "code"
        ]
        return code

    def metric(self, name: str, label: str = "") -> float:
        """The sum of all series of a metric in which this label stands."""
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in self._open("GET", "/metrics").decode().splitlines()
            if re.split(r"[ {]", line, maxsplit=1)[0] == name and label in line
        )

    def requests(self) -> float:
        """How many it has answered so far to gateways."""
        return self.metric("gateway_central_requests_total", 'call="/v1/')


def loaded(cards: int) -> Path:
    """A central's folder with so many cards, loaded once through its own command line, and their snapshot."""
    folder = WORK / f"central-{cards}"
    if (folder / "central.db").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    part = folder.with_name(folder.name + "-part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    feed = part.with_suffix(".ndjson")
    with feed.open("wb", buffering=1 << 20) as out:
        out.writelines(line + b"\n" for line in rig.records(cards))
    central = Central(part)
    try:
        command = [*COMMAND, "central", "load", str(feed), "--url", central.url]
        subprocess.run([*command, "--admin-token", str(part / "admin.token")], cwd=rig.ROOT, check=True)
    finally:
        central.stop()
    feed.unlink()
    part.rename(folder)
    return folder


def fresh(name: str, cards: int) -> Path:
    """A copy of ``loaded``."""
    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(loaded(cards), folder)
    return folder


def file_with(central: Central, cards: int) -> Path | None:
    """The manifest beside the central's snapshot file with all of the cards: it began with one of none."""
    for path in sorted((central.folder / "snapshots").glob("*.json"), reverse=True):
        if json.loads(path.read_bytes())["count"] > cards:
            return path
    return None


def enrol(gate: rig.Gate, central: Central) -> None:
    """``gateway enroll``, with the code on standard input."""
    subprocess.run(
        [*COMMAND, "enroll", central.url, "-", "--config", str(gate.config)],
        input=central.code("bench").encode(),
        cwd=rig.ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def sync(gate: rig.Gate) -> Process:
    """``gateway sync`` beside a gate."""
    return Process(gate.data_dir / "sync.log", "sync", "--config", str(gate.config))


def in_use(gate: rig.Gate) -> int:
    """The generation that the gate judges by, 0 without one."""
    snapshot = gate.client.call("status")["snapshot"]
    return 0 if snapshot is None else int(snapshot["generation"])


def empty_data_dir(name: str, parent: Path = WORK) -> Path:
    folder = parent / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    os.chmod(folder, 0o700)
    return folder
