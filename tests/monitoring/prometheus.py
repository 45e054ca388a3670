"""A real Prometheus with the configuration of monitoring/, for the tests and the pictures.

It is Debian's; ``make .venv/.prometheus`` unpacks it where it is not installed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.e2e.rig import WAIT, Json, until
from tests.e2e.system import free_port

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"


def tool(name: str) -> str:
    """The path of ``promtool`` or ``prometheus``."""
    found = shutil.which(name, path=f"{ROOT}/.venv/debian/usr/bin:{os.environ.get('PATH', '')}")
    assert found, f"{name} is not here: make .venv/.prometheus, or apt-get install prometheus"
    return found


class Prometheus:
    """A running server on loopback, and its API."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: Any) -> Any:
        """What an API call answers; a question that it does not understand is an error with its words."""
        try:
            with urllib.request.urlopen(f"{self._url}{path}?{urlencode(query)}", timeout=WAIT) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{query}: {error.read().decode()}") from None

    def ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._url}/-/ready", timeout=WAIT):
            return True
        return False

    def query(self, expression: str, at: float | None = None) -> list[Json]:
        """The series that an expression gives at one time (default: now)."""
        when = {} if at is None else {"time": at}
        found: list[Json] = self.get("/api/v1/query", query=expression, **when)["result"]
        return found

    def range(self, expression: str, start: float, end: float, step: float) -> list[Json]:
        found: list[Json] = self.get(
            "/api/v1/query_range", query=expression, start=start, end=end, step=step
        )["result"]
        return found

    def alerts(self) -> set[tuple[str, str]]:
        """(alert, instance) of all that are pending or firing."""
        told = self.get("/api/v1/alerts")["alerts"]
        return {(a["labels"]["alertname"], a["labels"].get("instance", "")) for a in told}


@contextlib.contextmanager
def running(folder: Path, gates: Mapping[str, str], interval: str = "2s") -> Iterator[Prometheus]:
    """A server with the project's configuration, rules and list of gates (name to address); only that it
    looks more often than there. Data and configuration lie in ``folder``."""
    often = re.compile(r"(_interval|interval): \w+$", re.MULTILINE)
    for name in ("prometheus.yml", "gateway.rules.yml"):
        text = (MONITORING / name).read_text()
        (folder / name).write_text(often.sub(rf"\1: {interval}", text))
    targets = [{"targets": [address], "labels": {"instance": name}} for name, address in gates.items()]
    (folder / "gates.yml").write_text(json.dumps(targets))  # JSON is YAML
    port = free_port()
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'prometheus-data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    log = folder / "prometheus.log"
    with log.open("wb") as err, subprocess.Popen(command, stdout=err, stderr=err, cwd=folder) as process:
        try:
            server = Prometheus(port)
            until(lambda: process.poll() is not None or server.ready(), "Prometheus is ready")
            assert process.poll() is None, log.read_text()
            yield server
        finally:
            process.kill()


def wait_until(server: Prometheus, expression: str, timeout: float = 60) -> None:
    """Wait until an expression gives something."""
    deadline = time.monotonic() + timeout
    while not server.query(expression):
        assert time.monotonic() < deadline, f"in vain: {expression}"
        time.sleep(0.2)
