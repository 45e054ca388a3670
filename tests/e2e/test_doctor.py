"""What ``gateway doctor`` says of the machine and of the gate's books: each fault is made, and told with the
command that mends it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from gateway import doctor_gate, doctor_machine
from gateway.cache.build import build
from gateway.cache.ledger_repair import FORMAT
from gateway.configload import load
from gateway.doctor_machine import Account
from gateway.findings import Finding
from gateway.metrics import Metrics
from gateway.units import Units
from tests.e2e.joined import join
from tests.e2e.rig import Json, Site, ndjson, until
from tests.e2e.test_failures import Disk

pytestmark = pytest.mark.timeout(180)

HOUR = 3600 * 1_000_000


def ask(here: Site) -> dict[str, list[Json]]:
    """The findings by what they are about; each that is not well has a remedy."""
    done = here.run("doctor", "--json")
    found: dict[str, list[Json]] = {}
    for finding in done.json:
        assert finding["state"] == "ok" or finding["remedy"], finding
        found.setdefault(finding["about"], []).append(finding)
    faulty = any(finding["state"] == "fault" for each in found.values() for finding in each)
    assert done.status == (1 if faulty else 0), done.err
    return found


def says(found: dict[str, list[Json]], about: str, state: str, *words: str) -> None:
    """One of the findings about it has that state and these words."""
    texts = [f"{f['found']} → {f['remedy']}" for f in found.get(about, []) if f["state"] == state]
    assert any(all(word in text for word in words) for text in texts), (about, words, found)


def told(finding: Finding, *words: str) -> None:
    assert finding.state == "fault", finding
    for word in words:
        assert word in f"{finding.found} → {finding.remedy}", finding


_NOBODY = """
import os, sys
from pathlib import Path
from gateway.configload import load
from gateway.doctor import findings
path = Path(sys.argv[1])
config = load(path)
os.getuid() or os.setuid(65534)
try:
    print(next(findings(config, path)))
except PermissionError as error:
    print(error.filename)
"""


def test_somebody_who_may_not_look(site: Callable[..., Site]) -> None:
    """Who may not look into the data_dir is told that, and no finding that would be about himself."""
    here = site()
    here.data_dir.chmod(0)
    command = [sys.executable, "-c", _NOBODY, here.config]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    here.data_dir.chmod(0o700)
    assert done.stdout.strip() == str(here.data_dir)


def test_no_cards_yet(site: Callable[..., Site]) -> None:
    """That there is no snapshot is said once, without a gate that runs and with one."""
    here = site()
    for running in (False, True):
        if running:
            here.start()
        found = ask(here)
        assert [finding["found"] for finding in found["snapshot"]] == ["there is none"]
        assert [finding["state"] for finding in found["gate"]] == ["ok" if running else "warning"]


# --- devices ------------------------------------------------------------------------------------------


@contextmanager
def squatter(folder: Path, name: str, device: Path) -> Iterator[int]:
    """A program of that name that has the device open."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    program = folder / name
    shutil.copy(sleep, program)
    with open(device, "r+b", buffering=0) as file, subprocess.Popen([program, "600"], stdin=file) as process:
        try:
            comm = Path(f"/proc/{process.pid}/comm")
            until(lambda: comm.read_text().strip() == name)
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("brltty", "apt-get remove brltty"),
        ("ModemManager", "ID_MM_DEVICE_IGNORE"),
        ("agetty", "systemctl disable --now serial-getty@"),
        ("minicom", "stop it: kill "),
    ],
)
def test_a_device_that_another_program_has(site: Callable[..., Site], name: str, remedy: str) -> None:
    """Who has it is named, and what keeps that program off; without a gate, and of a board beside one."""
    here = site()
    with squatter(here.folder, name, here.devices / "scanner-in") as pid:
        says(ask(here), "reader in", "fault", f"{name} (process {pid})", remedy)
    says(ask(here), "reader in", "ok")
    with squatter(here.folder, name, here.devices / "board-north") as pid:
        here.start()
        found = ask(here)
        says(found, "relay of lane north", "fault", f"{name} (process {pid})", remedy)
        says(found, "reader in", "ok")
    says(ask(here), "relay of lane north", "ok")


def test_a_device_that_others_may_have(tmp_path: Path) -> None:
    """A desktop has every keyboard open, and that is no fault; it is one where the gate cannot have it."""
    device = tmp_path / "dev/input/event0"
    device.parent.mkdir(parents=True)
    device.touch()
    (tmp_path / "proc").symlink_to("/proc")
    me = doctor_machine.account(tmp_path)
    with squatter(tmp_path, "Xorg", device) as pid:
        assert doctor_machine.device("x", str(device), me, tmp_path).state == "ok"
        told(doctor_machine.device("x", str(device), me, tmp_path, is_open=False), f"Xorg (process {pid})")


def test_rights_of_the_gates_user(tmp_path: Path) -> None:
    """Root may open everything: what counts is what the gate's user may. A group to join, rules to install, a
    line to add to them; a configuration that only root can read."""
    device = tmp_path / "hidraw0"
    device.touch()
    if os.getgid() == 0:
        os.chown(device, -1, 1)
    group = device.stat().st_gid
    stranger = Account("gateway", 54321, frozenset())
    member = Account("gateway", 54321, frozenset({group}))
    owner = Account("me", device.stat().st_uid, frozenset())
    device.chmod(0o660)
    assert (owner.may(device), member.may(device), stranger.may(device)) == (True, True, False)
    told(doctor_machine.device("x", str(device), stranger, tmp_path), "by the user gateway", "usermod -aG ")
    device.chmod(0o600)
    told(doctor_machine.device("x", str(device), member, tmp_path), "install systemd/60-gateway.rules")
    rules = tmp_path / "etc/udev/rules.d/60-gateway.rules"
    rules.parent.mkdir(parents=True)
    rules.touch()
    told(doctor_machine.device("x", str(device), member, tmp_path), "add a line for it", "lsusb")
    device.chmod(0o644)
    assert stranger.may(device, write=False)
    assert list(doctor_machine.configuration(device, stranger)) == []
    device.chmod(0o600)
    [finding] = doctor_machine.configuration(device, stranger)
    told(finding, "may not be read by the user gateway", f"chmod 644 {device}")
    assert doctor_machine.account(tmp_path).uid == os.getuid()


def test_usb_devices_without_a_driver(tmp_path: Path) -> None:
    """What is plugged in and has no driver is told with the module to load; what a program took from its
    driver, with that program; and it is the reason why a device is not there."""
    usb = tmp_path / "sys/bus/usb/devices"
    for name, vendor, kind, driver in (
        ("1-1", "1a86", "ff", None),
        ("1-2", "1a86", "ff", "usbfs"),
        ("1-3", "0403", "ff", "ftdi_sio"),
        ("1-4", "0c2e", "03", None),
        ("1-5", "dead", "08", None),
    ):
        interface = usb / f"{name}:1.0"
        interface.mkdir(parents=True)
        (usb / name).mkdir()
        (usb / name / "idVendor").write_text(f"{vendor}\n")
        (usb / name / "idProduct").write_text("7523\n")
        (interface / "bInterfaceClass").write_text(f"{kind}\n")
        if driver:
            (tmp_path / driver).mkdir(exist_ok=True)
            (interface / "driver").symlink_to(tmp_path / driver)
    found = {finding.about: finding for finding in doctor_machine.undriven_usb(tmp_path)}
    assert set(found) == {"USB 1-1", "USB 1-2", "USB 1-4"}
    told(found["USB 1-1"], "1a86:7523", "has no driver", "modprobe ch341")
    told(found["USB 1-2"], "taken from its driver", "apt-get remove brltty")
    told(found["USB 1-4"], "modprobe usbhid")
    me = doctor_machine.account(tmp_path)
    told(
        doctor_machine.device("x", "/dev/no-such", me, tmp_path),
        "/dev/no-such is not there",
        "modprobe ch341",
    )
    told(doctor_machine.device("x", "/dev/no-such", me, tmp_path / "none"), "gateway devices lists what is")


def test_boards_that_are_not_there(site: Callable[..., Site]) -> None:
    """A GPIO chip of another machine, a USB board with another id."""
    here = site(
        (
            {"name": "gpio", "relay": {"driver": "gpio", "chip": "no-such-chip", "line": 3}},
            {"name": "usb", "relay": {"driver": "usbrelay", "board": "ZZZZZ"}},
        ),
        ({"name": "a", "lane": "gpio"}, {"name": "b", "lane": "usb"}),
        ({"name": "in", "point": "a"},),
    )
    found = ask(here)
    says(
        found,
        "relay of lane gpio",
        "fault",
        "no GPIO chip 'no-such-chip'",
        "gateway devices lists the labels",
    )
    says(found, "relay of lane usb", "fault", "id 'ZZZZZ'", "gateway devices lists the boards")


# --- the machine --------------------------------------------------------------------------------------


def test_disks(tmp_path: Path, site: Callable[..., Site]) -> None:
    """Read-only, nearly full, without a free inode."""
    disk = Disk(tmp_path / "disk", "4m,nr_inodes=20")
    try:
        here = site(data_dir=disk.folder, zygote=disk.zygote)
        says(ask(here), "disk", "fault", "MiB free", "free some space")
        for number in range(20):
            try:
                (disk.seen / f"file{number}").touch()
            except OSError:
                break
        says(ask(here), "disk", "fault", "inodes", f"du --inodes -x {disk.folder}")
        disk.remount("ro")
        says(ask(here), "disk", "fault", f"{disk.folder} is read-only", f"mount -o remount,rw {disk.folder}")
    finally:
        disk.zygote.close()


SHOW = """#!/bin/sh
case "$1" in
cat) exit 0 ;;
show) cat "{folder}/$2" ;;
esac
"""
GOOD = "ActiveState=active\nSubState=running\nUnitFileState=enabled\nNRestarts=0\nResult=success\n"
UNITS: list[tuple[dict[str, str], str, tuple[str, ...]]] = [
    ({}, "ok", ("starts at boot",)),
    (
        {"ActiveState": "failed", "Result": "exit-code"},
        "fault",
        ("failed (exit-code)", "systemctl restart gateway"),
    ),
    (
        {"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "17", "Result": "watchdog"},
        "fault",
        ("again and again (17 times; watchdog)", "journalctl -u gateway"),
    ),
    ({"UnitFileState": "disabled"}, "warning", ("does not start at boot", "systemctl enable gateway")),
    ({"NeedDaemonReload": "yes"}, "warning", ("systemctl daemon-reload",)),
    ({"ActiveState": "inactive"}, "warning", ("is inactive", "systemctl start gateway")),
    ({"NRestarts": "5"}, "warning", ("started again 5 times", "journalctl -u gateway")),
]


@pytest.mark.parametrize(("changed", "state", "words"), UNITS, ids=lambda value: str(value)[:40])
def test_units(
    site: Callable[..., Site], changed: dict[str, str], state: str, words: tuple[str, ...]
) -> None:
    """How systemd sees the gate's unit; a stand-in for systemctl says it as that does. Without a central the
    sync's unit is no matter."""
    here = site()
    shown = {**dict(line.split("=") for line in GOOD.splitlines()), **changed}
    text = "".join(f"{name}={value}\n" for name, value in shown.items())
    for unit, said in (("gateway.service", text), ("gateway-sync.service", "")):
        (here.folder / unit).write_text(said)
    (here.folder / "systemctl").write_text(SHOW.format(folder=here.folder))
    (here.folder / "systemctl").chmod(0o755)
    units = Units(str(here.folder / "systemctl"), here.folder)
    found = {finding.about: finding for finding in doctor_machine.service(units, load(here.config))}
    [finding] = found.values()
    assert finding.about == "unit gateway.service"
    assert finding.state == state
    for word in words:
        assert word in f"{finding.found} → {finding.remedy}"


def test_a_machine_without_systemd(site: Callable[..., Site]) -> None:
    """There is nothing to say of units."""
    here = site()
    assert list(doctor_machine.service(Units("systemctl", here.folder / "no"), load(here.config))) == []


# --- the gate's books ---------------------------------------------------------------------------------


def test_counters_of_a_running_gate(site: Callable[..., Site]) -> None:
    """Torn codes, a reader that was slowed down, a disk that was too slow, a record that cannot be taken,
    an entry that the central refused, a configuration that was changed since: each with its remedy."""
    gate = join(site, unknown_codes_per_minute=1, commit_deadline_ms=10)
    here = gate.site
    quiet = ask(here)
    says(quiet, "reader in", "ok")
    assert not {"cards", "sockets"} & set(quiet)
    assert [f["state"] for f in quiet["disk"]] == ["ok"]
    for _ in range(10):
        here.scanners["in"].send(b"x" * 5000 + b"\r")
    until(lambda: here.metric('gateway_reader_dropped_total{reader="in"}') >= 10)
    for code in ("NOSUCH1", "NOSUCH2", "NOSUCH3"):
        here.scan("strict", code)
    until(lambda: here.metric('gateway_reader_slowed_total{reader="strict"}') >= 1)
    with closing(sqlite3.connect(here.data_dir / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        here.scan("in", "OPEN0")
        until(lambda: here.metric("gateway_ledger_late_commits_total") >= 1)
        other.execute("COMMIT")
    here.written()
    gate.courier.tell({"kind": "credential", "id": "C1"})
    epoch = gate.status["ledger"]["epoch"]
    gate.courier.client.call("refuse", epoch=epoch, seq=1, reason="not to my taste")
    until(lambda: here.call("refused")["events"])
    os.utime(here.config, (time.time() + 60, time.time() + 60))
    found = ask(here)
    says(found, "reader in", "warning", "10 codes came torn", "gateway setup")
    says(found, "reader strict", "warning", "slowed down", "look who stands there")
    says(found, "disk", "warning", "too slow", "commit_deadline_ms")
    says(found, "cards", "warning", "1 changed records", "journalctl -u gateway")
    says(found, "entries", "warning", "1 were refused by the central", "gateway ledger --refused")
    says(found, "configuration", "warning", "changed after the gate was started", "systemctl restart gateway")


def test_counters_that_should_stay_at_nothing() -> None:
    """Each counter of the table exists, says nothing at first, and is told once it counts."""
    metrics = Metrics()
    assert list(doctor_gate.counters(metrics.text().decode())) == []
    metrics.answers_refused.inc()
    metrics.epoch_conflicts.inc(2)
    metrics.clients_dropped.labels("admin").inc()
    found = {finding.about: finding for finding in doctor_gate.counters(metrics.text().decode())}
    assert "1 answers were not signed" in found["news"].found
    assert "2 times the central had others" in found["entries"].found
    assert "1 clients (admin)" in found["sockets"].found
    names = {sample.name for family in metrics.registry.collect() for sample in family.samples}
    names |= {f"{family.name}_total" for family in metrics.registry.collect() if family.type == "counter"}
    assert set(doctor_gate._COUNTERS) <= names


def test_a_ledger_that_is_not_ours(site: Callable[..., Site]) -> None:
    """Of another gateway, of a newer version, damaged: told before a gate is started."""
    here = site()
    here.start()
    here.call("clear", area="hall")
    here.written()
    here.stop()
    says(ask(here), "ledger", "ok", "can be read")
    here.gateway["id"] = "south"
    here.write()
    says(ask(here), "ledger", "warning", 'written as "north"', "set id as it was")
    path = here.data_dir / "ledger.db"
    with closing(sqlite3.connect(path)) as conn:
        conn.execute(f"PRAGMA user_version = {FORMAT + 1}")
        conn.execute("UPDATE meta SET value = ? WHERE key = 'format'", (FORMAT + 1,))
        conn.commit()
    says(ask(here), "ledger", "fault", f"newer version (format {FORMAT + 1}", "install the newer version")
    path.write_bytes(b"nonsense " * 1000)
    says(ask(here), "ledger", "fault", f"{path} cannot be read", "start the gate")


def test_cards_that_grow_old(site: Callable[..., Site]) -> None:
    """Before the cards are too old somebody is told."""
    here = site(max_snapshot_age_h=1, on_stale="deny")
    published = time.time_ns() // 1000 - HOUR * 9 // 10
    lines = ndjson([{"kind": "venue", "timezone": "UTC", "day_starts": "04:00"}]).splitlines()
    log = {"cursor": "h1.1", "history": "h1", "position": 1, "published": published}
    build(here.data_dir, lines, source="test", pace=0, **log)
    here.start()
    says(ask(here), "snapshot", "warning", "is 0.9 h old", "nobody is admitted", "gateway import FILE")
