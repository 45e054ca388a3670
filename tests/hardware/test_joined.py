"""A gate that has joined a central, each part under systemd: cards come over, entries go back."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hardware.gate import CARDS, Gate, card
from tests.hardware.guest import Guest

URL = "http://127.0.0.1:9470"
CENTRAL = """
useradd --system --user-group --home-dir /var/lib/gateway-central --no-create-home gateway-central
systemd-run --unit=central --uid=gateway-central --service-type=notify -p StateDirectory=gateway-central \
    gateway central serve --data /var/lib/gateway-central
"""
"""As docs/central.md says."""
ASK = (
    f"GATEWAY_CENTRAL_URL={URL} GATEWAY_ADMIN_TOKEN_FILE=/var/lib/gateway-central/admin.token gateway central"
)
CONFIGURATION = f"""\
[gateway]
id = "north"
data_dir = "/var/lib/gateway"

[central]
url = "{URL}"

[[lane]]
name = "north"
relay = {{ driver = "gpio", chip = "gate-lines", line = 1 }}

[[point]]
name = "north-in"
lane = "north"
from = "outside"
to = "hall"

[[reader]]
name = "in"
point = "north-in"
driver = "serial"
device = "/dev/serial/by-id/usb-Newland_Serial_Scanner_SN03-if00"
"""


@pytest.fixture(scope="module")
def joined(guest: Guest, gate: Gate) -> Gate:
    """Central, gate and sync, each a unit; the gate has joined."""
    guest.call("lines.make")
    guest.call("serialscanner.make", name="scanner")
    guest.call("serialscanner.plug", name="scanner", socket=0)
    guest.run(CENTRAL, timeout=120).ok()
    guest.run(f"{ASK} load -", input=CARDS + card(1, "8K2MPX4T7Q"), timeout=120).ok()
    gate.configure(CONFIGURATION)
    gate.start()
    [code] = guest.run(f"{ASK} enrol-code north", timeout=60).lines()
    guest.run(f"gateway enroll {URL} -", input=code["code"] + "\n", timeout=60).ok()
    guest.run("systemctl restart gateway-sync", timeout=120).ok()
    guest.until(lambda: gate.reader_up("in"), "the reader is up")
    return gate


def scan(gate: Gate, code: str) -> dict[str, Any]:
    seq = gate.last()
    gate.guest.call("serialscanner.type", name="scanner", code=code)
    return gate.scans(seq, 1)[0]


def test_cards_come_over_and_entries_go_back(joined: Gate) -> None:
    """The hardened gate builds the snapshot that its sync fetched; a card that comes later and one that is
    revoked are judged by the next scan; the central has every entry."""
    guest = joined.guest

    def snapshot() -> Any:
        return joined.ask("status")["snapshot"]

    guest.until(lambda: (snapshot() or {}).get("cursor"), "a snapshot of the central's", 120)
    guest.until(lambda: snapshot()["counts"]["credentials"] == 1, "with its card", 60)
    assert scan(joined, "8K2MPX4T7Q")["verdict"] == "granted"
    guest.run(f"{ASK} load -", input=card(2, "NEWCARD"), timeout=60).ok()
    guest.until(lambda: snapshot()["counts"]["credentials"] == 2, "the new card", 60)
    assert scan(joined, "NEWCARD")["verdict"] == "granted"
    guest.run(f"{ASK} revoke C1", timeout=60).ok()
    guest.until(lambda: scan(joined, "8K2MPX4T7Q")["verdict"] == "revoked", "the revocation", 60, every=2)
    last = joined.last()
    guest.until(lambda: joined.ask("status")["ledger"]["acknowledged"] >= last, "all is uploaded", 60)
    there = guest.run(f"{ASK} events", timeout=60).lines()
    scans = [event["credential"] for event in there if event["kind"] == "scan"]
    assert scans[:2] == ["C1", "C2"]
    assert set(scans[2:]) == {"C1"}


def test_nobody_but_the_sync_has_its_token(joined: Gate) -> None:
    """What the central gave the gateway is in the sync's folder, which the gate's user cannot read."""
    guest = joined.guest
    assert guest.run("sudo -u gateway cat /var/lib/gateway-sync/token").code != 0
    assert guest.run("stat -c '%U %a' /var/lib/gateway-sync/token").ok().split() == ["gateway-sync", "600"]
