"""What ``gateway doctor`` finds on the machine under the gate: rights, devices, disk, units."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.config import Config, LaneConfig, ReaderConfig
from gateway.findings import Finding
from gateway.units import Units

_ROOM: Final = 200 * 1024 * 1024
"""Bytes free below which the ledger is in danger of filling the disk."""
_RULES: Final = ("etc/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d", "run/udev/rules.d")
_DRIVERS: Final = {
    "1a86": ("CH340 or CH341 adapter", "ch341"),
    "0403": ("FTDI adapter", "ftdi_sio"),
    "10c4": ("CP210x adapter", "cp210x"),
    "067b": ("PL2303 adapter", "pl2303"),
}
"""USB vendors of serial adapters, with the kernel's driver."""
_CLASSES: Final = {"02": ("serial port (CDC ACM)", "cdc_acm"), "03": ("HID device", "usbhid")}
"""USB interface classes of scanners and boards, with the kernel's driver."""
_RESTARTS: Final = 3
_SHARED: Final = ("hidraw", "gpiochip")


# --- who the gate is ----------------------------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Account:
    """The user that a gate runs as."""

    name: str
    uid: int
    groups: frozenset[int]

    def may(self, path: Path, read: bool = True, write: bool = True) -> bool:
        """Whether the rights of that file let this user open it so. Raises OSError."""
        if self.uid == 0:
            return True
        status = path.stat()
        wanted = 4 * read + 2 * write
        if status.st_uid == self.uid:
            granted = status.st_mode >> 6
        elif status.st_gid in self.groups:
            granted = status.st_mode >> 3
        else:
            granted = status.st_mode
        return granted & wanted == wanted


def account(data_dir: Path, units: Units | None = None) -> Account:
    """Whoever the data_dir belongs to; without one, whoever asks. A unit may give it more groups."""
    try:
        uid, gid = (status := data_dir.stat()).st_uid, status.st_gid
    except OSError:
        uid, gid = os.geteuid(), os.getegid()
    groups = {gid}
    name = str(uid)
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(uid)
        name = user.pw_name
        groups.update(os.getgrouplist(user.pw_name, user.pw_gid))
    if units is not None and units.here:
        for group in (
            units.show("gateway.service", "SupplementaryGroups").get("SupplementaryGroups", "").split()
        ):
            with contextlib.suppress(KeyError):
                groups.add(grp.getgrnam(group).gr_gid)
    return Account(name, uid, frozenset(groups))


# --- devices ------------------------------------------------------------------------------------------


def reader(config: ReaderConfig, user: Account) -> Finding:
    """A scanner, as the gate's user would find it; no gate runs."""
    about = f"reader {config.name}"
    if config.driver == "stdin":
        return Finding(about, "ok", "standard input")
    return device(about, config.device, user)


def relay(lane: LaneConfig, user: Account, *, running: bool) -> Finding | None:
    """The board of a lane's relay, without sending it anything. None: there is none to look at."""
    about = f"relay of lane {lane.name}"
    if lane.relay.device is not None:
        return device(about, lane.relay.device, user, is_open=running or None)
    if lane.relay.driver == "gpio":
        from gateway.turnstile.gpio import find_chip

        try:
            return device(about, find_chip(str(lane.relay.chip)), user, is_open=running or None)
        except OSError as error:
            return Finding(
                about,
                "fault",
                str(error),
                "correct chip in the configuration: gateway devices lists the labels",
            )
    if lane.relay.driver == "usbrelay":
        from gateway.turnstile.usbrelay import find_board

        try:
            return device(about, find_board(lane.relay.board).path, user, is_open=running or None)
        except OSError as error:
            return Finding(
                about, "fault", str(error), "plug it in; gateway devices lists the boards and their ids"
            )
    return None


def device(
    about: str, name: str, user: Account, root: Path = Path("/"), *, is_open: bool | None = None
) -> Finding:
    """One device file. ``is_open``: a running gate has it open, or cannot open it; None: no gate runs."""
    path = Path(name)
    if not path.exists():
        undriven = next(iter(undriven_usb(root)), None)
        if undriven is not None:
            return Finding(about, "fault", f"{name} is not there; {undriven.found}", undriven.remedy)
        return Finding(about, "fault", f"{name} is not there", "plug it in; gateway devices lists what is")
    if not user.may(path) or not os.access(path, os.R_OK | os.W_OK):
        return Finding(about, "fault", *_no_right(path, user, root))
    # Input devices, hidraw nodes and GPIO chips are open in other programs also where all is well: a desktop,
    # fwupd. Only where the gate cannot have one does it matter who has it.
    shared = path.resolve().is_relative_to(root / "dev/input") or path.resolve().name.startswith(_SHARED)
    others = holders(path, root) if not shared or is_open is False else []
    if is_open:
        others = [other for other in others if not other[1].startswith(("gateway", "python"))]
    if others:
        names = ", ".join(f"{command} (process {pid})" for pid, command in others)
        return Finding(about, "fault", f"{name} is in use by {names}", _let_go(others))
    if is_open is False:
        return Finding(
            about, "fault", f"{name} is there but not open", "see the journal: journalctl -u gateway"
        )
    return Finding(about, "ok", name)


def _no_right(path: Path, user: Account, root: Path) -> tuple[str, str]:
    status = path.stat()
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = str(status.st_gid)
    found = f"{path} may not be opened by the user {user.name}: it is for the group {group}"
    if group != "root" and status.st_mode & 0o060 == 0o060:
        return found, f"usermod -aG {group} {user.name}, then systemctl restart gateway"
    if not rules_installed(root):
        return found, (
            "install systemd/60-gateway.rules into /etc/udev/rules.d, then: udevadm control --reload && "
            "udevadm trigger"
        )
    return found, (
        "add a line for it to /etc/udev/rules.d/61-gateway.rules (lsusb shows its vendor), then: "
        "udevadm control --reload && udevadm trigger"
    )


def rules_installed(root: Path = Path("/")) -> bool:
    """Whether a udev rule of the gateway is there."""
    return any(any((root / folder).glob("*gateway*.rules")) for folder in _RULES)


def holders(path: Path, root: Path = Path("/")) -> list[tuple[int, str]]:
    """The other processes that have this device open, with their names; only root sees those of others."""
    wanted = os.path.realpath(path)
    found = []
    for process in sorted((root / "proc").glob("[0-9]*"), key=lambda one: int(one.name)):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) == wanted for fd in (process / "fd").iterdir()):
                found.append((int(process.name), (process / "comm").read_text().strip()))
    return found


def _let_go(others: list[tuple[int, str]]) -> str:
    commands = {command for _, command in others}
    if "brltty" in commands:
        return "apt-get remove brltty: it takes serial adapters for braille displays"
    if "ModemManager" in commands:
        return (
            'have it ignore the port by a udev rule, ENV{ID_MM_DEVICE_IGNORE}="1", or, without a modem here: '
            "systemctl disable --now ModemManager"
        )
    if any(command.endswith("getty") for command in commands):
        return (
            "a login waits there: systemctl disable --now serial-getty@PORT.service, and take console=PORT "
            "out of the kernel's command line"
        )
    return f"stop it: kill {others[0][0]}"


def undriven_usb(root: Path = Path("/")) -> Iterator[Finding]:
    """USB devices that scanners and boards are made of, with no driver of the kernel's on them."""
    for interface in sorted((root / "sys/bus/usb/devices").glob("*:*")):
        base = interface.parent / interface.name.partition(":")[0]
        vendor = _line(base / "idVendor")
        what, module = _DRIVERS.get(vendor) or _CLASSES.get(_line(interface / "bInterfaceClass"), ("", ""))
        driver = (
            os.path.basename(os.path.realpath(interface / "driver"))
            if (interface / "driver").exists()
            else ""
        )
        if not what or driver not in ("", "usbfs"):
            continue
        ids = f"{vendor}:{_line(base / 'idProduct')}"
        if driver == "usbfs":
            yield Finding(
                f"USB {base.name}",
                "fault",
                f"a {what} ({ids}) was taken from its driver by a program",
                "apt-get remove brltty, if that is there; then plug the device in again",
            )
        else:
            yield Finding(
                f"USB {base.name}",
                "fault",
                f"a {what} ({ids}) is plugged in and has no driver",
                f"modprobe {module}",
            )


def _line(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


# --- disk and files -----------------------------------------------------------------------------------


def disk(data_dir: Path) -> Iterator[Finding]:
    """Room, and whether it may be written at all."""
    status = os.statvfs(data_dir)
    free = status.f_bavail * status.f_frsize
    if status.f_flag & os.ST_RDONLY:
        mount = data_dir.resolve()
        while not mount.is_mount():
            mount = mount.parent
        yield Finding(
            "disk",
            "fault",
            f"{mount} is read-only: entries cannot be recorded",
            f"look for its errors (dmesg), then: mount -o remount,rw {mount}; a card that does so again is "
            "worn: replace it",
        )
        return
    if status.f_files and not status.f_favail:
        yield Finding(
            "disk",
            "fault",
            "no further file can be made (inodes)",
            f"remove files: du --inodes -x {data_dir}",
        )
    enough = free > _ROOM
    yield Finding(
        "disk",
        "ok" if enough else "fault",
        f"{free // 1024 // 1024} MiB free",
        None
        if enough
        else "free some space: without it entries cannot be recorded (journalctl --vacuum-size=50M)",
    )


def configuration(path: Path, user: Account) -> Iterator[Finding]:
    """Whether the gate may read what root has just read."""
    with contextlib.suppress(OSError):
        if not user.may(path, write=False):
            yield Finding(
                "configuration",
                "fault",
                f"{path} may not be read by the user {user.name}",
                f"chmod 644 {path}",
            )


# --- units --------------------------------------------------------------------------------------------


def service(units: Units, config: Config) -> Iterator[Finding]:
    """How systemd sees the units that are installed here."""
    for unit in units.installed():
        if unit == "gateway-sync.service" and config.central is None:
            continue  # its pages alone are no must
        found = units.show(
            unit, "ActiveState", "SubState", "UnitFileState", "NRestarts", "Result", "NeedDaemonReload"
        )
        name = unit.removesuffix(".service")
        restarts = int(found.get("NRestarts") or 0)
        about = f"unit {unit}"
        if found.get("ActiveState") == "failed":
            yield Finding(
                about,
                "fault",
                f"has failed ({found.get('Result')})",
                f"journalctl -u {name} says why; systemctl restart {name}",
            )
        elif found.get("SubState") == "auto-restart" or (
            restarts >= _RESTARTS and found.get("ActiveState") == "activating"
        ):
            yield Finding(
                about,
                "fault",
                f"ends and is started again and again ({restarts} times; {found.get('Result')})",
                f"journalctl -u {name} says why",
            )
        elif found.get("UnitFileState") == "disabled":
            yield Finding(about, "warning", "does not start at boot", f"systemctl enable {name}")
        elif found.get("NeedDaemonReload") == "yes":
            yield Finding(
                about,
                "warning",
                "its file was changed and not read again",
                f"systemctl daemon-reload && systemctl restart {name}",
            )
        elif found.get("ActiveState") != "active":
            yield Finding(about, "warning", f"is {found.get('ActiveState')}", f"systemctl start {name}")
        elif restarts >= _RESTARTS:
            yield Finding(
                about,
                "warning",
                f"was started again {restarts} times",
                f"journalctl -u {name} says why it ended",
            )
        else:
            yield Finding(about, "ok", "runs, and starts at boot")
