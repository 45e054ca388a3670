"""The units of systemd around setup: a stand-in for ``systemctl`` notes what it is told, the rest is real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.units import Units

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
_SYSTEMCTL = """#!/bin/sh
echo "$@" >> "{folder}/asked"
case "$1" in
is-active) test -e "{folder}/running-$3" ;;
cat) test -e "{folder}/unit-$2" ;;
stop) shift; for unit; do rm -f "{folder}/running-$unit"; done ;;
start|restart) shift; for unit; do touch "{folder}/running-$unit"; done ;;
enable) test ! -e "{folder}/broken" || {{ echo "Failed to enable unit" >&2; exit 1; }} ;;
esac
"""
_RUN = """
import sys
from pathlib import Path
from gateway.setup.run import Options, setup
from gateway.units import Units
folder = Path(sys.argv[1])
answers = folder / sys.argv[2] if sys.argv[2] else None
sys.exit(setup(Options(folder / "etc/gateway.toml", answers, data_dir=folder / "data",
                       units=Units(str(folder / "systemctl"), folder))))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A machine whose gate is installed and runs."""
    (tmp_path / "systemctl").write_text(_SYSTEMCTL.format(folder=tmp_path))
    (tmp_path / "systemctl").chmod(0o755)
    for unit in ("gateway.service", "gateway-sync.service"):
        (tmp_path / f"unit-{unit}").touch()
        (tmp_path / f"running-{unit}").touch()
    (tmp_path / "etc").mkdir()
    return tmp_path


def run(
    folder: Path, typed: str, interrupt: signal.Signals | None = None, answers: str = ""
) -> tuple[int, str]:
    """Setup as a process; with ``interrupt``, the input stays open and it is signalled at a question."""
    with subprocess.Popen(
        [sys.executable, "-c", _RUN, str(folder), answers],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(typed.encode())
        process.stdin.flush()
        if interrupt is None:
            _, err = process.communicate(timeout=120)
            return process.returncode, err.decode()
        said, until = b"", time.monotonic() + 120
        while b"Name of this gateway" not in said:
            assert time.monotonic() < until, said
            said += os.read(process.stderr.fileno(), 4096)
        process.send_signal(interrupt)
        said += process.stderr.read()
        return process.wait(120), said.decode()


def asked(folder: Path) -> list[str]:
    """What systemctl was told, without the questions."""
    lines = (folder / "asked").read_text().splitlines()
    return [line for line in lines if not line.startswith(("is-active", "cat", "show"))]


ALL = "gateway-sync.service gateway.service"
BACK = "gateway.service gateway-sync.service"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_an_interrupted_setup_starts_the_gate_again(folder: Path, number: signal.Signals) -> None:
    """The gate is stopped only after a yes, and runs again whatever ends setup; nothing else is changed."""
    status, said = run(folder, "y\n", number)
    assert status == (130 if number is signal.SIGINT else 2)
    assert "The gate is started again." in said
    assert "nothing was changed" in said
    assert asked(folder) == [f"stop {ALL}", f"start {BACK}"]
    assert (folder / "running-gateway.service").exists()
    assert not list((folder / "etc").iterdir())


def test_the_end_of_the_input_and_a_no(folder: Path) -> None:
    """The end of the input is an interruption too. Without a yes nothing is stopped."""
    status, said = run(folder, "y\nnorth\n")
    assert status == 2
    assert "the input has ended; nothing was changed" in said
    assert asked(folder) == [f"stop {ALL}", f"start {BACK}"]
    (folder / "asked").unlink()
    status, said = run(folder, "\n")
    assert (status, asked(folder)) == (0, [])
    assert "Then not: the gate goes on." in said


def answer(folder: Path) -> tuple[int, str]:
    """Setup with all answers from a file."""
    lane = {"in": {"scanner": {"driver": "stdin"}}, "exit": False, "relay": {"driver": "memory"}}
    given = {"id": "north", "stop": True, "replace": True, "lane": [{**lane, "passage": "none"}]}
    (folder / "answers.json").write_text(json.dumps(given))
    return run(folder, "", answers="answers.json")


def test_the_units_run_the_new_configuration(folder: Path) -> None:
    """In the end the units are enabled and started anew; where that fails it is told, the gate that was
    stopped is started again, and the exit status is 1."""
    status, said = answer(folder)
    assert (folder / "etc/gateway.toml").exists(), said
    assert status == 0, said
    assert "Started, now and at each boot: gateway-sync.service, gateway.service" in said
    assert asked(folder) == [f"stop {ALL}", f"enable {ALL}", f"restart {BACK}"]
    (folder / "asked").unlink()
    (folder / "broken").touch()
    status, said = answer(folder)
    assert status == 1, said
    assert "Failed to enable unit" in said
    assert asked(folder) == [f"stop {ALL}", f"enable {ALL}", f"start {BACK}"]


def test_without_systemd(tmp_path: Path) -> None:
    """No unit is looked for where systemd does not run; a command that is missing is a reason, no crash."""
    nowhere = Units("systemctl", tmp_path / "no")
    assert (nowhere.here, nowhere.active(), nowhere.installed()) == (False, [], [])
    missing = Units(str(tmp_path / "missing"), tmp_path)
    assert missing.active() == []
    assert "missing stop" in missing.stop(["gateway.service"])
