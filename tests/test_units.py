"""The files in systemd/: what systemd itself says of them, and that they fit each other and the program."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.control import Client

ROOT = Path(__file__).parent.parent
UNITS = ROOT / "systemd"
PROGRAM = "/opt/gateway/.venv/bin/gateway"
"""Where README.md installs it."""


def analyze(*words: str | Path) -> str:
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing to say about any service or socket."""
    program = tmp_path / "gateway"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    names = [*UNITS.glob("*.service"), *UNITS.glob("*.socket")]
    assert len(names) == 4
    for path in names:
        text = path.read_text().replace(PROGRAM, str(program))
        # The page that Documentation= names is on a gate's disk, not on this one.
        (tmp_path / path.name).write_text(re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE))
    said = analyze("verify", *(tmp_path / path.name for path in names))
    ours = [line for line in said.splitlines() if "gateway" in line]
    assert not ours


@pytest.mark.parametrize(("unit", "most"), [("gateway.service", 0.5), ("gateway-sync.service", 1.2)])
def test_exposure(unit: str, most: float) -> None:
    """systemd's own score of how exposed a service is stays within what was promised."""
    said = analyze("security", "--offline=yes", "--threshold=100", UNITS / unit)
    found = re.search(r"Overall exposure level .*?: ([0-9.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= most


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if re.match(r"[A-Z]\w+=", line):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_each_role_has_its_socket() -> None:
    """The sockets bear the names of the roles, the sync is told the path of its own, and only its group may
    open that."""
    admin, sync = settings("gateway.socket"), settings("gateway-sync.socket")
    assert (admin["FileDescriptorName"], sync["FileDescriptorName"]) == (["admin"], ["sync"])
    assert admin["SocketGroup"] == settings("gateway.service")["Group"]
    assert sync["SocketGroup"] == settings("gateway-sync.service")["Group"]
    assert admin["SocketMode"] == sync["SocketMode"] == ["0660"]
    [path] = sync["ListenStream"]
    assert settings("gateway-sync.service")["Environment"] == [f"GATEWAY_SYNC_SOCKET={path}"]


def test_every_user_is_made() -> None:
    """Users and groups that units and udev rules name are those of the sysusers file, and root."""
    made = set(re.findall(r"^u (\S+)", (UNITS / "gateway-sysusers.conf").read_text(), re.MULTILINE))
    named = {"root"}
    for unit in UNITS.glob("gateway*.s*"):
        wanted = settings(unit.name)
        for key in ("User", "Group", "SocketUser", "SocketGroup"):
            named |= set(wanted.get(key, []))
    named |= set(re.findall(r'GROUP="([^"]+)"', (UNITS / "60-gateway.rules").read_text()))
    assert named == made | {"root"}


def test_every_device_of_the_unit_has_its_driver_loaded_first() -> None:
    """What DeviceAllow names by driver comes from a module that modules-load.d loads, or from the kernel."""
    drivers = {
        "char-input": {"evdev"},
        "char-hidraw": {"hid", "usbhid"},
        "char-ttyACM": {"cdc_acm"},
        "char-166": set(),
        "char-ttyUSB": {"usbserial"},
        "char-188": set(),
        "char-ttyAMA": set(),
        "char-ttyS": set(),
        "char-gpiochip": set(),
    }
    allowed = {line.split()[0] for line in settings("gateway.service")["DeviceAllow"]}
    assert allowed == set(drivers)
    loaded = set((UNITS / "gateway-modules.conf").read_text().split("\n"))
    assert set().union(*drivers.values()) <= loaded


WHICH = """
import asyncio, json, os, socket, sys
from pathlib import Path
from gateway import control

async def main():
    os.environ["LISTEN_PID"] = str(os.getpid())
    handed = control.handed_over()
    listening = control.Socket("admin", {"status": lambda _: {"here": True}}, {}, lambda _: None)
    await listening.listen(Path(sys.argv[1]), handed["admin"])
    print(json.dumps(os.readlink(sys.argv[1])), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    listening.close()

asyncio.run(main())
"""


def test_a_socket_of_systemd_is_found_where_the_gate_always_is(tmp_path: Path) -> None:
    """A gate with a socket of systemd's leaves a link to it at its own path, over a stale one too, and takes
    it away again; systemd's own file stays."""
    there, path = tmp_path / "run.sock", tmp_path / "admin.sock"
    path.symlink_to(tmp_path / "gone.sock")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(there))
        listening.listen()
        gate = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec 3<&{listening.fileno()}; exec "$@"',
                "-",
                sys.executable,
                "-c",
                WHICH,
                path,
            ],
            pass_fds=[listening.fileno()],
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "admin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    with gate:
        assert gate.stdin is not None
        assert gate.stdout is not None
        assert json.loads(gate.stdout.readline()) == str(there)
        with Client(path) as client:
            assert client.call("status") == {"here": True}
        gate.stdin.write(b"\n")
    assert gate.returncode == 0
    assert not path.is_symlink()
    assert there.exists()
