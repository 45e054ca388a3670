"""The units of systemd, where it runs: how they are; stopped while setup has the devices, started again."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SERVICES: Final = ("gateway-sync.service", "gateway.service")
"""In the order in which they are stopped. Their sockets come and go with the gate."""
UNITS: Final = (*SERVICES, "gateway.socket", "gateway-sync.socket")
_PATIENCE: Final = 90.0
_STARTING: Final = 1200.0
"""Seconds. A gate may take 15 minutes to mend its ledger (TimeoutStartSec), the sync 5; systemd gives up
first, and says why."""


@dataclass(slots=True, frozen=True)
class Units:
    """``systemctl``: the command; ``booted``: a folder that is there where systemd runs (sd_booted(3))."""

    systemctl: str = "systemctl"
    booted: Path = Path("/run/systemd/system")

    @property
    def here(self) -> bool:
        return self.booted.is_dir()

    def active(self) -> list[str]:
        """The services of the gateway that run."""
        return [unit for unit in SERVICES if self.here and self._ask("is-active", "--quiet", unit) == ""]

    def installed(self) -> list[str]:
        """Its services that systemd knows."""
        return [unit for unit in SERVICES if self.here and self._ask("cat", unit) == ""]

    def stop(self, units: list[str]) -> str:
        """Gives "", or what went wrong."""
        return self._ask("stop", *units) if units else ""

    def start(self, units: list[str]) -> str:
        return self._ask("start", *reversed(units), patience=_STARTING) if units else ""

    def enable(self, units: list[str]) -> str:
        """Have them run now, with the present configuration, and after each boot."""
        if not units:
            return ""
        return self._ask("enable", *units) or self._ask("restart", *reversed(units), patience=_STARTING)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit; empty where they cannot be had."""
        try:
            done = self._run("show", unit, *(f"--property={name}" for name in properties))
        except (OSError, subprocess.TimeoutExpired):
            return {}
        found = (line.partition("=") for line in done.stdout.splitlines())
        return {name: value for name, _, value in found if name in properties}

    def _ask(self, *arguments: str, patience: float = _PATIENCE) -> str:
        """Gives "" when it worked."""
        try:
            done = self._run(*arguments, patience=patience)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{self.systemctl} {arguments[0]}: {error}"
        if done.returncode == 0:
            return ""
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        return f"{self.systemctl} {' '.join(arguments)}: {said}"

    def _run(self, *arguments: str, patience: float = _PATIENCE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.systemctl, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
