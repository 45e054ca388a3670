"""``gateway setup`` from nothing to a gate that admits a member of a real central's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.configload import load
from tests.e2e.rig import ROOT, Board, Scanner, Zygote, card, product, until, venue
from tests.e2e.system import System

pytestmark = pytest.mark.timeout(180)

# A service manager that starts the gate and the sync, and is asked for nothing else.
_SYSTEMCTL = """#!/bin/sh
case "$1" in
is-active) exit 1 ;;
cat) test "$2" = gateway.service ;;
restart)
    cd {root} && {python} -m gateway run --config {config} < /dev/null > {folder}/run.log 2>&1 &
    echo $! > {folder}/pid
    while ! test -S {folder}/data/admin.sock; do sleep 0.1; done ;;
show) echo ActiveState=active; echo SubState=running; echo UnitFileState=enabled ;;
esac
"""
_RUN = """
import sys
from pathlib import Path
from gateway.setup.run import Options, setup
from gateway.units import Units
folder = Path(sys.argv[1])
sys.exit(setup(Options(
    folder / "etc/gateway.toml", data_dir=folder / "data", scanners=[f"serial:{folder}/scanner"],
    boards=[f"{folder}/board"], units=Units(str(folder / "systemctl"), folder),
)))
"""


class Technician:
    """Setup as a process, its input a pipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "etc/gateway.toml"
        self.config.parent.mkdir()
        script = _SYSTEMCTL.format(root=ROOT, python=sys.executable, config=self.config, folder=folder)
        (folder / "systemctl").write_text(script)
        (folder / "systemctl").chmod(0o755)
        self.scanner, self.board = Scanner(folder / "scanner"), Board(folder / "board")
        self.said = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, str(folder)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def expect(self, text: str) -> str:
        """Wait until this is said; what stands before it."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + 120
        while text not in self.said:
            data = os.read(self.process.stderr.fileno(), 4096)
            assert data, f"{text!r} in {self.said}"
            assert time.monotonic() < deadline
            self.said += data.decode()
        before, _, self.said = self.said.partition(text)
        return before

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stderr.close()
        if (self.folder / "pid").exists():
            pid = int((self.folder / "pid").read_text())
            os.kill(pid, 15)
            until(lambda: not Path(f"/proc/{pid}").exists() or _is_dead(pid))
        self.scanner.unplug()
        self.board.unplug()


def _is_dead(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


@pytest.fixture
def system(tmp_path: Path, zygote: Zygote) -> Iterator[System]:
    """A central with one card."""
    made = System(tmp_path, zygote)
    made.central.start()
    made.central.load([*venue(), product("open"), *card(1, "SECRETCARD", "open")])
    yield made
    made.close()


@pytest.fixture
def technician(tmp_path: Path) -> Iterator[Technician]:
    folder = tmp_path / "gate"
    folder.mkdir()
    made = Technician(folder)
    yield made
    made.close()


def test_from_nothing_to_the_first_member(system: System, technician: Technician) -> None:
    """Setup enrols with the code that is typed, starts the units, waits for the cards and tells the verdict
    on the first scan; without a yes no card is asked for. Neither code is shown."""
    code = system.central.code("north")
    for said, line in (
        ("Name of this gateway", "north"),
        ("How many turnstiles", ""),
        ("Name of lane 1", ""),
        ("Name of the area", ""),
        ("way out too", "n"),
        ("Name of the way in", ""),
    ):
        technician.expect(said)
        technician.type(line)
    technician.expect("go on without a scan)")
    technician.scanner.send(b"GATE-Zy#\\\r")
    for said, line in (
        ("Which relay opens", "1"),
        ("Which board", "1"),
        ("Which of its relays", ""),
        ("shall it? [y/N]", "y"),
        ("Did lane north open", "1"),
        ("Address of the central", system.central.url),
        ("CA of its certificate", ""),
        ("One-time code", code),
        ("Write this to", "y"),
    ):
        technician.expect(said)
        technician.type(line)
    technician.expect(f"Joined: north to {system.central.url}")
    technician.expect("Started, now and at each boot: gateway.service")
    technician.expect("Test a card at the gate now")
    technician.type("y")
    technician.expect("Scan a card. (Enter")
    technician.scanner.scan("SECRETCARD")
    technician.expect("north-in: granted")
    until(lambda: technician.board.pulses() == 2)
    technician.expect("gateway doctor has")
    assert technician.process.wait(120) == 0
    assert technician.process.stderr is not None
    rest = technician.said + technician.process.stderr.read().decode()
    assert load(technician.config).central is not None
    assert "SECRETCARD" not in rest
    assert code not in technician.config.read_text()


def test_a_code_that_is_wrong(system: System, technician: Technician) -> None:
    """The configuration stands, the gate is started, and what is still to be done is told: exit status 1."""
    for said, line in (
        ("Name of this gateway", "north"),
        ("How many turnstiles", ""),
        ("Name of lane 1", ""),
        ("Name of the area", ""),
        ("way out too", "n"),
        ("Name of the way in", ""),
        ("go on without a scan)", ""),
        ("What now", "3"),
        ("Which relay opens", "2"),
        ("Address of the central", system.central.url),
        ("CA of its certificate", ""),
        ("One-time code", "AAAA-BBBB-CCCC"),
        ("Write this to", ""),
        ("Not joined: the central does not know this code", ""),
        ("Started, now", ""),
    ):
        technician.expect(said)
        technician.type(line)
    told = technician.expect("enrol-code north")
    assert "not joined yet" in told
    assert technician.process.wait(120) == 1
    assert load(technician.config).readers[0].driver == "stdin"
