"""The Debian package over its life: installed, upgraded, removed, purged."""

from __future__ import annotations

from tests.hardware.gate import Gate
from tests.hardware.guest import Guest

CONFIGURATION = """
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[[lane]]
name = "north"
relay = { driver = "memory" }

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

[[reader]]
name = "scanner"
point = "north-in"
driver = "stdin"
"""
CHECK = "gateway check 8K2MPX4T7Q --point north-in"
STORES = "ls /etc/gateway/gateway.toml /var/lib/gateway/ledger.db /var/lib/gateway/code.key"


def test_the_package_from_its_upgrade_to_its_purge(guest: Guest, gate: Gate) -> None:
    """An upgrade keeps configuration, cards and entries, and restarts what runs; after a removal all of it is
    still there, and the gate is not; a purge takes that too, and the users."""
    assert guest.run("systemctl is-enabled gateway gateway-sync").out.split() == ["enabled", "enabled"]
    assert guest.run("systemctl is-active gateway").out.strip() == "inactive"
    gate.configure(CONFIGURATION)
    gate.cards(["8K2MPX4T7Q"])
    guest.run("systemctl start gateway gateway-sync", timeout=120).ok()
    guest.run("gateway open north", timeout=60).ok()
    before = guest.run("systemctl show -P MainPID gateway gateway-sync").ok().split()
    guest.run("dpkg -i /parcel/packages/*.deb", timeout=900).ok()
    guest.until(gate.up, "the gate is up again", 120)
    after = guest.run("systemctl show -P MainPID gateway gateway-sync").ok().split()
    assert len(after) == 2
    assert "0" not in after
    assert not set(before) & set(after)
    assert guest.run(CHECK, timeout=60).lines()[0]["verdict"] == "granted"
    assert [event["kind"] for event in gate.events()] == ["open"]

    guest.run("apt-get remove -y entry-scan-gateway", timeout=300).ok()
    guest.run(STORES).ok()
    assert guest.run("systemctl is-active gateway gateway-sync").out.split() == ["inactive", "inactive"]
    assert guest.run("ls -d /opt/gateway /usr/bin/gateway").out == ""

    guest.run("apt-get purge -y entry-scan-gateway", timeout=120).ok()
    gone = "/etc/gateway /var/lib/gateway /var/lib/gateway-sync /opt/gateway"
    assert guest.run(f"ls -d {gone}").out == ""
    assert guest.run("getent passwd gateway gateway-sync; getent group gateway gateway-sync").out == ""
