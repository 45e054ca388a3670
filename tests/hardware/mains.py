"""A lane whose plug is pulled: what stands around it, the load, the cut, and what must be true after it.

A cut kills QEMU. What that takes from the guest's disk is said by QEMU's cache mode, ``CACHES``.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Any

from tests.hardware.gate import Gate
from tests.hardware.guest import SLOW, Guest

CACHES = {
    "writeback": "the guest has a disk with a volatile cache; of what it did not flush, what lay in clusters"
    " of the image that were new may be lost with QEMU, which has their place in memory until a flush",
    "directsync": "the guest has a disk without a cache; each write is on the host's disk when it is done",
}
CUTS = int(os.environ.get("GATEWAY_HARDWARE_CUTS", "30"))
"""How many, over all modules."""
SEED = int(os.environ.get("GATEWAY_HARDWARE_SEED") or random.SystemRandom().randrange(1 << 32))
AHEAD = 3
"""Visitors that have read a code and for whom the lane has not opened yet, at most."""
DEADLINE = 5000
"""commit_deadline_ms, the longest there is: beyond it the lane opens before the entry is on disk."""
CONFIG = f"""\
[gateway]
id = "north"
data_dir = "/var/lib/gateway"
commit_deadline_ms = {DEADLINE}

[[lane]]
name = "north"
relay = {{ driver = "gpio", chip = "gate-lines", line = 1 }}
pulse_ms = 50

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

[[reader]]
name = "scanner"
point = "north-in"
driver = "serial"
device = "/dev/serial/by-id/usb-Newland_Serial_Scanner_SN03-if00"
"""

_NOT_NEEDED = """
    getty@tty1.service serial-getty@ttyS0.service systemd-logind.service dbus.service dbus.socket
    systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-user-sessions.service
    systemd-random-seed.service systemd-sysusers.service systemd-sysctl.service systemd-binfmt.service
    systemd-tmpfiles-clean.timer systemd-tmpfiles-setup.service systemd-tmpfiles-setup-dev.service
    kmod-static-nodes.service modprobe@configfs.service modprobe@drm.service modprobe@loop.service
    modprobe@fuse.service modprobe@efi_pstore.service modprobe@dm_mod.service systemd-remount-fs.service
    sys-fs-fuse-connections.mount sys-kernel-config.mount sys-kernel-debug.mount dev-mqueue.mount
    dev-hugepages.mount gateway-sync.service gateway-sync.socket parcel.mount
    systemd-fsckd.socket systemd-initctl.socket systemd-journald-audit.socket
"""
"""What Debian starts and a gate does not need: each boot has its share of the minutes that this takes."""
_COLDPLUG = """\
[Service]
ExecStart=
ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=virtio-ports
"""


def codes(count: int) -> list[str]:
    """So many, all different."""
    return [f"v{number:06d}" for number in range(count)]


def world(guest: Guest) -> None:
    """What stands around the gate PC: the relay's lines and a scanner, plugged in."""
    guest.call("lines.make")
    guest.call("serialscanner.make", name="scanner")
    guest.call("serialscanner.plug", name="scanner", socket=0)


class Mains:
    """A gate with visitors, and its plug."""

    def __init__(
        self, computer: Callable[..., Guest], cache: str, share: int, say: Callable[[str], None]
    ) -> None:
        """``share``: which part of the cuts this is, for its own moments."""
        self.cache, self.say = cache, say
        self.dice = random.Random(f"{SEED} {share}")
        self.guest = computer(cache=cache)
        self.gate = Gate(self.guest)
        self.visitors = codes(400)
        self._seen = 0
        """Events that were looked at."""
        self.pulses = self.late = 0

    def install(self) -> None:
        """A gate that has cards and a scanner, on a computer that boots no more than a gate needs."""
        guest = self.guest
        guest.boot(until="system")
        guest.run(
            f"systemctl mask {' '.join(_NOT_NEEDED.split())} && sed -i '\\|^/dev/vda|d' /etc/fstab"
        ).ok()
        guest.write("/etc/systemd/system/systemd-udev-trigger.service.d/few.conf", _COLDPLUG)
        self.gate.configure(CONFIG)
        self.gate.cards(self.visitors)
        guest.off()

    def boot(self) -> None:
        """Switches it on; everything else the gate does by itself."""
        self._from = len(self.guest.news)
        self.guest.boot()
        world(self.guest)

    def admits(self) -> None:
        """Comes back when the first visitor since the boot went in; the others follow."""
        self.guest.until(self._ready, "the gate has its scanner", 180)
        self.guest.call("load.busy")
        self.guest.call("load.begin", scanners=[["serialscanner", "scanner", self.visitors]], ahead=AHEAD)
        self.guest.until(self._opened, "the first visitor went in", 60, every=0.01)

    def _ready(self) -> bool:
        return self.gate.up() and self.gate.reader_up("scanner")

    def _opened(self) -> list[dict[str, Any]]:
        told = self.guest.told("gpio", self._from)
        return [n for n in told if n["line"] == 1 and n["value"] == 1]

    def cut(self) -> None:
        """At some moment of the next seconds."""
        time.sleep(self.dice.uniform(0, 4) * SLOW)
        self.guest.cut()
        read = self.guest.told("typed", self._from)
        self.read = [n["code"] for n in read]
        # Each visitor's pulse comes after all before it. Past the deadline nothing is promised of its entry.
        waited = [pulse["at"] - code["at"] for pulse, code in zip(self._opened(), read, strict=False)]
        self.sure = next((n for n, us in enumerate(waited) if us > 0.9 * DEADLINE * 1000), len(waited))
        self.pulses += self.sure
        self.late += len(waited) - self.sure

    def look(self) -> int:
        """After the next boot: each pulse before the cut has its entry. Gives how many entries there are."""
        events = self.gate.events(self._seen)
        assert not [e for e in events if e.get("damaged")]
        assert [e["seq"] for e in events] == list(range(self._seen + 1, self._seen + 1 + len(events)))
        scans = [e for e in events if e["kind"] == "scan"]
        assert all(e["verdict"] == "granted" for e in scans), scans
        # In the order in which they were read, none left out, none made up.
        assert [e["credential"] for e in scans] == [f"C{n}" for n in range(len(scans))]
        assert self.sure <= len(scans) <= len(self.read), (self.sure, len(scans), len(self.read))
        self._seen += len(events)
        return len(scans)

    def cuts(self, count: int) -> None:
        """So many power cuts under load, and after every fifth another one while the gate starts."""
        self.say(f"{count} cuts, cache={self.cache}: {CACHES[self.cache]}; GATEWAY_HARDWARE_SEED={SEED}")
        self.install()
        starting = entries = 0
        self.boot()
        self.admits()
        for number in range(count):
            self.cut()
            if number % 5 == 4:
                self.guest.boot()
                time.sleep(self.dice.uniform(0, 12) * SLOW)
                self.guest.cut()
                starting += 1
            began = time.monotonic()
            self.boot()
            self.guest.until(self._ready, "the gate has its scanner", 180)
            entries += self.look()
            pulses, read = self.sure, len(self.read)
            self.admits()
            took = time.monotonic() - began
            self.say(f"cut {number + 1}: {pulses} pulses, {read} codes read; admits again after {took:.0f} s")
        assert self.pulses > count, "hardly anybody went in"
        self.say(
            f"{count} cuts under load and {starting} while the gate started: {self.pulses} pulses,"
            f" {entries} entries, {self.late} pulses past the commit deadline"
        )
