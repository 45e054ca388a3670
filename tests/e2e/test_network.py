"""Central and sync in two networks with a bad line between them, and TLS over it.

Nothing here is told by the line's clock: what is asserted is what arrives, once, and what goes on without it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.lossy import FAR, Line
from tests.e2e.rig import Json, Site, Zygote, card, product, until, venue
from tests.e2e.system import Authority, Gateway, System

SEED = 20261123
CARDS = 40
LANES = ({"name": "north", "second_grant": "extend", "relay": {"driver": "memory"}},)
POINTS = ({"name": "north-in", "lane": "north"},)
READERS = ({"name": "in", "point": "north-in"},)
pytestmark = pytest.mark.timeout(300)
Make = Callable[..., Site]


def records(n: int = CARDS) -> list[Json]:
    """Cards with codes of no pattern, so that a file of them cannot be made small."""
    draw = secrets.token_hex
    found = [*venue(), product("day")]
    for each in range(n):
        found += card(each, f"{each:05}{draw(24)}", "day")
    return found


def codes(of: list[Json]) -> list[str]:
    return [record["code"] for record in of if record["kind"] == "credential"]


class Net(NamedTuple):
    """The line, and what forks processes on its sides."""

    line: Line
    near: Zygote
    far: Zygote


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    """One for all tests of this file; each sets the line's policy for itself."""
    line = Line(SEED)
    near, far = Zygote(*line.near), Zygote(*line.far)
    yield Net(line, near, far)
    near.close()
    far.close()
    line.close()


@pytest.fixture
def system(tmp_path: Path, zygote: Zygote, net: Net) -> Iterator[System]:
    """A central on the far side of a good line, whose certificate the near side can trust."""
    net.line.set(loss=0.0, delay_ms=0, jitter_ms=0, cut=False, cut_after=None)
    folder = tmp_path / "system"
    folder.mkdir()
    made = System(folder, zygote, there=net.far, here=net.near, host=FAR, authority=Authority(folder))
    yield made
    made.close()


def begun(system: System, site: Make, known: list[Json]) -> Gateway:
    """The central with these records, and a gate that is joined and has none of them yet."""
    system.central.start()
    system.central.load(known)
    gateway = system.gateway(site, LANES, POINTS, READERS)
    gateway.site.start()
    gateway.join()
    return gateway


def test_a_central_without_a_good_certificate_is_not_joined(
    system: System, site: Make, tmp_path: Path
) -> None:
    """Another authority, an expired certificate, another name: a clear word, and nothing is pinned."""
    assert system.authority is not None
    central = system.central
    central.start()
    central.load(records(1))
    gateway = system.gateway(site, LANES, POINTS, READERS)
    gateway.site.start()
    code = central.code(gateway.name)

    def refused(reason: str) -> None:
        done = gateway.enroll(code)
        assert done.status == 2
        assert "no trust in the central's certificate" in done.err
        assert reason in done.err
        assert "the code still holds" in done.err
        assert code not in done.err + done.out
        assert not (gateway.site.data_dir / "central.json").exists()
        assert not list(gateway.site.data_dir.rglob("token"))
        assert gateway.status["central"] is None

    ours = gateway.site.sections["central"]
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    for theirs in ({"ca_file": other.file}, {}):  # none: the system's, which have never heard of ours
        gateway.site.sections["central"] = {"url": central.url, **theirs}
        gateway.site.write()
        refused("unable to get local issuer certificate")
    gateway.site.sections["central"] = ours
    gateway.site.write()
    for certificate, reason in (
        (system.authority.certificate(FAR, timedelta(hours=-1)), "certificate has expired"),
        (system.authority.certificate("central.example"), "IP address mismatch"),
    ):
        right, central.tls = central.tls, certificate
        central.kill()
        central.start()
        refused(reason)
        central.tls = right
    central.kill()
    central.start()
    done = gateway.enroll(code)
    assert (done.status, done.json[0]["url"]) == (0, central.url)
    gateway.start_sync()
    until(gateway.cards, "the cards come over TLS")
    system.agree()


def test_a_lossy_line_and_a_cut_lose_nothing(system: System, site: Make, net: Net) -> None:
    """Packets are lost, late and out of order, then none comes at all: the gate goes on, and afterwards each
    revocation and each event has arrived once."""
    net.line.set(loss=0.05, delay_ms=40, jitter_ms=30)
    known = records()
    gateway = begun(system, site, known)
    gateway.start_sync()
    here = gateway.site
    until(gateway.cards, "the cards come", 60)
    cards = codes(known)
    revoke = system.central.call

    def verdict(n: int) -> str:
        return str(here.scan("in", cards[n])["verdict"])

    def knows(n: int) -> bool:
        """Whether the gate has heard; a scan to find out would be one more event on the line."""
        [told] = gateway.check([cards[n]])
        return bool(told["verdict"] == "revoked")

    for n in range(5):
        revoke("POST", f"credentials/C{n}/revoke", {"state": "revoked"})
        assert verdict(20 + n) == "granted"
        until(lambda n=n: knows(n), "the revocation comes over the lossy line", 60)
        assert verdict(n) == "revoked"
    net.line.set(cut=True)
    lost = net.line.counts()["lost"]
    sent = gateway.status["ledger"]["last_seq"]
    for n in range(5, 15):
        revoke("POST", f"credentials/C{n}/revoke", {"state": "lost"})
        for _ in range(4):
            assert verdict(n) == "granted", "what cannot have been heard cannot be known"
            assert verdict(25) == "granted"
            assert verdict(0) == "revoked"
    until(lambda: net.line.counts()["lost"] > lost + 3, "it was tried, and cut")
    assert gateway.status["ledger"]["acknowledged"] <= sent
    assert not gateway.has_sent()
    net.line.set(cut=False)
    until(lambda: all(map(knows, range(15))), "each revocation comes after the cut", 60)
    assert {verdict(n) for n in range(15)} == {"revoked"}
    left = system.agree(cards)
    assert sum(record.get("state") in ("lost", "revoked") for record in left) == 15
    assert net.line.counts()["overtaken"] > 0, "this line is too good for the test"


def test_a_snapshot_that_is_cut_is_gone_on_with(system: System, site: Make, net: Net) -> None:
    """The line breaks in the middle of the file and the connection with it: only what is missing is sent."""
    known = records(6000)
    gateway = begun(system, site, known)
    size = file_of(system)
    assert size > 200_000
    net.line.set(delay_ms=5, cut_after=size // 2)
    gateway.start_sync()
    until(lambda: net.line.counts()["cut"], "the download is cut")
    part = gateway.site.data_dir / "sync" / "snapshot.part"
    until(lambda: part.exists() and part.stat().st_size > size // 5, "what came before the cut is kept")
    assert part.stat().st_size < size
    before = net.line.counts()["near"]
    net.line.forget()
    net.line.set(cut=False)
    until(gateway.cards, "the cards come after the cut", 60)
    assert net.line.counts()["near"] - before < size, "more than the rest was sent"
    made = gateway.requests("snapshot")
    assert made.pop("206") == 1
    assert sum(made.values()) == 1, "and the one that was cut"
    assert not part.exists()
    system.agree()


def file_of(system: System) -> int:
    """Have the central make a snapshot file of what it has now, and give its size."""
    system.central.stop()
    folder = system.central.data / "snapshots"
    for each in folder.iterdir():
        each.unlink()
    system.central.start()
    [file] = until(lambda: list(folder.glob("*.gz")), "the central has made the file")
    return file.stat().st_size
