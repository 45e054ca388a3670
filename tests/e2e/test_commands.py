"""Doctor and devices, and what every command says when it cannot do its work."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.rig import ROOT, Done, Site, Zygote, card, ndjson, product, until, venue

LANES = ({"name": "north", "second_grant": "extend"},)


def gateway(*arguments: str | bytes | Path, stdin: bytes = b"") -> Done:
    """Run the command as a newcomer does, from a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", *arguments], input=stdin, capture_output=True, cwd=ROOT, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


# --- devices and doctor -------------------------------------------------------------------------------


def test_devices(site: Callable[..., Site]) -> None:
    """``devices`` needs no configuration, tells what is there as text or NDJSON, and exits 0."""
    here = site()
    here.config.unlink()
    done = here.run("devices")
    assert done.status == 0
    assert "scanner(s)" in done.out
    assert "relay board(s)" in done.out
    done = here.run("devices", "--json")
    assert done.status == 0
    for found in done.json:
        assert found["type"] in ("scanner", "relay")
        if found["type"] == "scanner":
            assert tomllib.loads(found["toml"])["reader"]


def states(done: Done) -> dict[str, str]:
    return {finding["about"]: finding["state"] for finding in done.json}


def test_doctor(site: Callable[..., Site]) -> None:
    """``doctor`` finds what is at fault, with a remedy: exit 0 without a fault, 1 with one; text and NDJSON
    agree; with a gate and without."""
    here = site(LANES)
    here.imports([*venue(), product("open"), *card(1, "OPEN", "open")])
    done = here.run("doctor", "--json")
    found = states(done)
    assert done.status == 0, done.out
    assert found["gate"] == "warning"
    assert found["snapshot"] == found["reader in"] == found["relay of lane north"] == "ok"
    here.start()
    done = here.run("doctor", "--json")
    found = states(done)
    assert done.status == 0, done.out
    assert found["gate"] == found["lane north"] == found["ledger"] == found["reader in"] == "ok"
    text = here.run("doctor")
    assert text.status == 0
    for finding in done.json:
        if finding["about"] not in ("disk", "ledger"):  # their figures change
            assert f"{finding['about']}: {finding['found']}" in text.out

    here.scanners["in"].unplug()
    here.boards["north"].unplug()
    until(lambda: here.metric('gateway_reader_up{reader="in"}') == 0)
    until(lambda: here.metric('gateway_lane_state{lane="north",state="fault"}') == 1)
    done = here.run("doctor", "--json")
    found = states(done)
    assert done.status == 1
    assert found["reader in"] == found["lane north"] == found["relay of lane north"] == "fault"
    assert found["reader out"] == "ok"
    for finding in done.json:
        assert finding["state"] == "ok" or finding["remedy"], finding
    assert "→" in here.run("doctor").out


def test_doctor_of_broken_stores(site: Callable[..., Site]) -> None:
    """Cut snapshots, ledgers set aside, a key that others may read, a data_dir that is not there."""
    here = site(LANES)
    for _ in range(2):
        here.imports([*venue(), product("open"), *card(1, "OPEN", "open")])
    os.truncate(here.data_dir / "snapshot-00000002.mdb", 9000)
    (here.data_dir / "ledger.db").write_bytes(b"nonsense" * 1000)
    (here.data_dir / "code.key").chmod(0o644)
    here.start()
    done = here.run("doctor", "--json")
    assert done.status == 1
    faults = {f["about"]: f["found"] for f in done.json if f["state"] == "fault"}
    assert faults["code.key"]
    assert "generation 2 is damaged; 1 serves" in faults["snapshot"]
    assert any(f["about"] == "ledger" and "set aside" in f["found"] for f in done.json)
    here.stop()
    shutil.rmtree(here.data_dir)
    done = here.run("doctor", "--json")
    assert done.status == 1
    (fault,) = [f for f in done.json if f["about"] == "data_dir"]
    assert fault["remedy"] == f"install -d -m 700 {here.data_dir}"


# --- what cannot be done ------------------------------------------------------------------------------


ALL = (
    ("gate",),
    ("run",),
    ("import", "-"),
    ("check", "CODE", "--point", "north-in"),
    ("ledger",),
    ("open", "north"),
    ("lane", "north", "free"),
    ("clear", "hall"),
    ("annul", "1"),
    ("doctor",),
    ("doctor", "--json"),
    ("replay", "/dev/null", "/dev/null"),
)


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_wrong_configuration(site: Callable[..., Site], command: tuple[str, ...]) -> None:
    """With a wrong configuration every command that reads it exits 2, and says on stderr which file and key,
    and what to do; stdout is for results."""
    here = site(LANES)
    text = here.config.read_text()
    wrongs = {
        text.replace("pulse_ms", "puls_ms"): ("lane[0].puls_ms", "did you mean pulse_ms?"),
        text.replace("pulse_ms = 50", "pulse_ms = 5"): ("lane[0].pulse_ms", "give 50 to 6000"),
        text.replace('lane = "north"', 'lane = "nroth"'): ("point[0].lane", 'did you mean "north"?'),
        text.replace('name = "north"', 'name = "north', 1): ("is not valid TOML", "quotes"),
    }
    for wrong, (key, remedy) in wrongs.items():
        assert wrong != text
        here.config.write_text(wrong)
        done = here.run(*command)
        assert (done.status, done.out) == (2, ""), command
        assert str(here.config) in done.err
        assert key in done.err
        assert remedy in done.err
    here.config.unlink()
    done = here.run(*command)
    assert (done.status, done.out) == (2, "")
    assert f"{here.config}: is not there; gateway setup writes one, and --config names another" in done.err


def test_data_dir_that_is_missing(site: Callable[..., Site]) -> None:
    """Without its data_dir a gate says how to make it; check and ledger say so too; an import makes it."""
    here = site(LANES)
    here.data_dir.rmdir()
    for command in (("gate",), ("run",), ("check", "OPEN", "--point", "north-in"), ("ledger",)):
        done = here.run(*command)
        assert (done.status, done.out) == (2, ""), command
        assert str(here.data_dir) in done.err
    assert f"install -d -m 700 {here.data_dir}" in here.run("gate").err
    feed = ndjson([*venue(), product("open"), *card(1, "OPEN", "open")])
    assert here.run("import", "-", stdin=feed).status == 0
    assert here.data_dir.stat().st_mode & 0o777 == 0o700
    here.start()
    assert here.scan("in", "OPEN")["verdict"] == "granted"


def test_two_gates_on_one_data_dir(site: Callable[..., Site], zygote: Zygote) -> None:
    """The second gate exits 2 and says why; the first goes on, and has kept its sockets."""
    here = site(LANES)
    here.imports([*venue(), product("open"), *card(1, "OPEN", "open")])
    here.start()
    second = here.run("gate")
    assert second.status == 2
    assert f"another gate runs on {here.data_dir}" in second.err
    assert here.scan("in", "OPEN")["verdict"] == "granted"
    here.pulses(1)
    assert here.call("status")["gateway"] == "north"


def test_socket_that_cannot_be_made(site: Callable[..., Site]) -> None:
    """A socket path that cannot be used: exit 2, and the path is named."""
    here = site(LANES)
    here.gateway["admin_socket"] = here.folder / "nowhere" / "a"
    here.write()
    done = here.run("gate")
    assert done.status == 2
    assert "nowhere/a" in done.err


def test_files_that_are_not_there(site: Callable[..., Site]) -> None:
    """Feeds and scans that are no files: exit 2, named."""
    here = site(LANES)
    for arguments in (("import", "/nowhere"), ("import", "/tmp"), ("replay", "/nowhere", "-")):
        done = here.run(*arguments)
        assert (done.status, done.out) == (2, "")
        assert arguments[1] in done.err
    done = here.run("replay", "/dev/null", "-", stdin=b'{"at":"2026-01-01","point":"north-in","code":"X"}\n')
    assert done.status == 2
    assert "line 1" in done.err or ":1:" in done.err
    assert "at" in done.err


def test_usage() -> None:
    """No command, or one that is not there: exit 2 with the usage on stderr. ``--version`` and ``--help``
    exit 0."""
    for arguments in ((), ("opne", "north"), ("lane", "north", "ajar"), ("annul", "first"), ("check", "X")):
        done = gateway(*arguments)
        assert (done.status, done.out) == (2, ""), arguments
        assert "usage: gateway" in done.err
    assert re.fullmatch(r"gateway \d+\.\d+\.\d+\n", gateway("--version").out)
    assert gateway("--help").status == 0


def test_gate_as_a_newcomer_starts_it(site: Callable[..., Site]) -> None:
    """``python -m gateway run`` from a fresh interpreter admits, logs JSON lines without codes, and ends."""
    here = site(LANES)
    here.imports([*venue(), product("open"), *card(1, "SECRETCODE", "open")])
    gate = subprocess.Popen(
        [sys.executable, "-m", "gateway", "run", "--config", here.config], stderr=subprocess.PIPE, cwd=ROOT
    )
    try:
        until((here.folder / "s").exists, "its sockets are there")
        until(lambda: here.boards["north"].last() is False, "its board is driven")
        assert here.scan("in", "SECRETCODE")["verdict"] == "granted"
        here.pulses(1)
    finally:
        gate.terminate()
        _, log = gate.communicate(timeout=20)
    assert gate.returncode == 0
    events = [json.loads(line)["event"] for line in log.decode().splitlines()]
    assert "ready" in events
    assert "scan" in events
    assert b"SECRETCODE" not in log
