"""What was restored, copied or replaced: nothing counts twice, nothing is lost that either side holds."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.rig import Json, Site, Zygote, card, product, until, venue
from tests.e2e.system import Gateway, System

NORTH = (
    ({"name": "north", "relay": {"driver": "memory"}, "second_grant": "extend"},),
    ({"name": "north-in", "lane": "north", "anti_passback": "hard"},),
    ({"name": "in", "point": "north-in"},),
)
SOUTH = (
    ({"name": "south", "relay": {"driver": "memory"}, "second_grant": "extend"},),
    ({"name": "south-in", "lane": "south", "anti_passback": "hard"},),
    ({"name": "in", "point": "south-in"},),
)
CARDS = 20


def soft(tables: Any) -> Any:
    """The same with an entry that refuses nobody for being inside."""
    lanes, (point,), readers = tables
    return lanes, ({**point, "anti_passback": "soft"},), readers


@pytest.fixture
def system(tmp_path: Path, zygote: Zygote) -> Iterator[System]:
    """A central with twenty cards that enter as often as they like, and as many single tickets."""
    made = System(tmp_path, zygote)
    made.central.start()
    records: list[Json] = [*venue(), product("open"), product("once", limits=[{"max": 1, "per": "term"}])]
    for n in range(CARDS):
        records += card(n, f"OPEN{n}", "open") + card(100 + n, f"ONCE{n}", "once")
    made.central.load(records)
    yield made
    made.close()


def joined(system: System, site: Callable[..., Site], tables: Any = NORTH, id_: str = "north") -> Gateway:
    """A gateway that has joined and judges by the central's cards."""
    gateway = system.gateway(site, *tables, id=id_)
    gateway.site.start()
    gateway.join()
    gateway.start_sync()
    until(lambda: gateway.cards() == 2 * CARDS, "its first snapshot")
    return gateway


def enter(gateway: Gateway, *codes: str) -> list[str]:
    """Scan each; the verdicts."""
    found = [str(gateway.site.scan("in", code)["verdict"]) for code in codes]
    gateway.site.written()
    return found


def off(gateway: Gateway) -> None:
    """Sync and gate stop in order."""
    gateway.stop_sync()
    gateway.site.stop()


def on(gateway: Gateway) -> None:
    gateway.site.start()
    gateway.start_sync()


def image(gateway: Gateway, name: str) -> Path:
    """A copy of its whole card."""
    path = gateway.site.folder / name
    shutil.copytree(gateway.site.data_dir, path, ignore=shutil.ignore_patterns("*.sock"))
    return path


def put_back(gateway: Gateway, path: Path) -> None:
    shutil.rmtree(gateway.site.data_dir)
    shutil.copytree(path, gateway.site.data_dir)
    gateway.site.data_dir.chmod(0o700)


def at_central(system: System, gateway: str = "north") -> list[str]:
    """The credentials of all grants that the central has, sorted."""
    return sorted(
        event["credential"]
        for event in system.central.events(gateway)
        if event["kind"] == "scan" and event["verdict"] == "granted"
    )


def inside(gateway: Gateway) -> int:
    return int(gateway.status["areas"]["hall"])


@pytest.mark.parametrize("offline", [False, True], ids=["heard first", "scanned first"])
def test_a_card_restored_from_an_older_image(
    system: System, site: Callable[..., Site], offline: bool
) -> None:
    """What it did in the forgotten week stands at the central and comes back as usage: a single ticket of
    that week is used, and who is inside is inside. What it does from then on is sent under a new epoch, and
    both weeks stand there once."""
    gateway = joined(system, site)
    assert enter(gateway, "OPEN0", "ONCE0") == ["granted", "granted"]
    until(gateway.has_sent)
    off(gateway)
    old = image(gateway, "image")
    on(gateway)
    assert enter(gateway, "OPEN1", "ONCE1", "OPEN2") == ["granted"] * 3
    until(gateway.has_sent)
    off(gateway)
    put_back(gateway, old)
    gateway.site.start()
    expected = ["C0", "C1", "C100", "C101", "C2"]
    if offline:  # under numbers that the central knows for others
        assert enter(gateway, "OPEN3", "OPEN4") == ["granted", "granted"]
        expected += ["C3", "C4"]
    gateway.start_sync()
    before = gateway.status["ledger"]["epoch"] if not offline else None
    until(lambda: inside(gateway) == len(expected), "those of the forgotten week are inside again")
    assert before is None or gateway.status["ledger"]["epoch"] != before or offline
    assert enter(gateway, "ONCE1", "OPEN1", "OPEN5") == ["limit_reached", "passback", "granted"]
    until(gateway.has_sent)
    until(lambda: at_central(system) == sorted([*expected, "C5"]), "each grant stands there once")
    assert inside(gateway) == len(expected) + 1


def test_the_central_restored_from_an_older_backup(system: System, site: Callable[..., Site]) -> None:
    """Its gateways notice, take its older cards, and send again what it has lost; at the end both agree."""
    north = joined(system, site, soft(NORTH))
    south = joined(system, site, soft(SOUTH), "south")
    assert enter(north, "OPEN0") == ["granted"]
    system.settle()
    system.central.stop()
    backup = system.folder / "backup"
    shutil.copytree(system.central.data, backup)
    system.central.start()
    system.central.load([{"kind": "credential", "id": "C7", "deleted": True}])
    assert enter(north, "OPEN1") == ["granted"]
    assert enter(south, "OPEN2") == ["granted"]
    system.settle()
    assert enter(south, "OPEN7") == ["unknown_credential"]
    until(south.has_sent)
    system.central.kill()
    shutil.rmtree(system.central.data)
    shutil.copytree(backup, system.central.data)
    system.central.start()
    for gateway in (north, south):
        until(lambda g=gateway: g.status["snapshot"]["generation"] == 2, "the older cards are taken", 60)
    assert enter(south, "OPEN7") == ["granted"]
    assert enter(north, "OPEN3") == ["granted"]
    system.agree()
    assert at_central(system) == ["C0", "C1", "C3"]
    assert sorted(set(at_central(system, "south"))) == ["C2", "C7"]
    assert inside(north) == inside(south) == 5


def test_a_gateway_replaced_by_a_new_box(system: System, site: Callable[..., Site]) -> None:
    """A new box under the old name knows who is inside and what was used, and numbers anew; the old one is
    cut off, and nothing is counted twice."""
    old = joined(system, site)
    assert enter(old, "OPEN0", "ONCE0") == ["granted", "granted"]
    until(old.has_sent)
    new = joined(system, site)
    until(lambda: inside(new) == 2, "those who went in at the old box are inside")
    assert enter(new, "OPEN0", "ONCE0", "OPEN1") == ["passback", "limit_reached", "granted"]
    until(new.has_sent)
    assert at_central(system) == ["C0", "C1", "C100"]
    assert enter(old, "OPEN2") == ["granted"]  # it still admits, and nobody listens any more
    assert old.sync is not None
    until(lambda: "token" in old.sync.errors(), "the old box says that its token is worth nothing")
    assert at_central(system) == ["C0", "C1", "C100"]
    assert new.status["ledger"]["epoch"] != old.status["ledger"]["epoch"]
    off(old)
    system.gateways.remove(old)


def test_the_same_card_in_two_boxes(system: System, site: Callable[..., Site]) -> None:
    """Both copies record under the same numbers. The central keeps each entry once, under two epochs, says
    that there are two, and the one whose token is older is cut off when the token is renewed."""
    one = joined(system, site)
    assert enter(one, "OPEN0") == ["granted"]
    until(one.has_sent)
    off(one)
    two = system.gateway(site, *NORTH, id="north")
    put_back(two, image(one, "copy"))
    one.site.start()
    two.site.start()
    assert enter(one, "OPEN1") == ["granted"]
    assert enter(two, "OPEN2") == ["granted"]
    one.start_sync()
    until(one.has_sent)
    two.start_sync()
    until(lambda: two.has_sent() and two.status["ledger"]["epoch"] != one.status["ledger"]["epoch"])
    until(lambda: at_central(system) == ["C0", "C1", "C2"], "each entry once")
    system.central.load([{"kind": "holder", "id": "nudge"}])  # what is told under one's own name wakes nobody
    until(lambda: inside(one) == 3 and inside(two) == 3, "each knows of the other's")
    system.central.call("POST", "gateways/north/token")

    until(lambda: two.status["snapshot"]["generation"] == 2, "its snapshot", 60)
    system.central.call("POST", "gateways/north/token")
    nudges = itertools.count()

    def shown() -> bool:
        # Each answer is a chance for one of them to come with its token; without news they take 25 s.
        system.central.load([{"kind": "holder", "id": "nudge", "notice": f"{next(nudges)}"}])
        time.sleep(0.2)
        kinds = [each["kind"] for each in system.central.call("GET", "conflicts")["conflicts"]]
        return "instance" in kinds

    until(shown, "the central shows that there are two", 60)
    off(two)
    off(one)
    system.gateways.clear()


def test_two_gates_that_did_not_hear_of_each_other(system: System, site: Callable[..., Site]) -> None:
    """A card that went in at one gate is refused at the other as soon as that has heard; when neither could
    hear and both let it in, the central marks it."""
    north = joined(system, site)
    south = joined(system, site, SOUTH, "south")
    assert enter(north, "OPEN0") == ["granted"]
    until(lambda: inside(south) == 1, "the other gate has heard")
    assert enter(south, "OPEN0") == ["passback"]
    assert not system.central.call("GET", "conflicts")["conflicts"]
    system.settle()
    system.central.kill()
    assert enter(north, "OPEN1") == ["granted"]
    assert enter(south, "OPEN1") == ["granted"]
    system.central.start()

    def conflicts() -> list[Json]:
        found: list[Json] = system.central.call("GET", "conflicts")["conflicts"]
        return found

    found = until(conflicts, "the conflict is marked", 60)
    assert [each["kind"] for each in found] == ["passback"]
    system.settle()
    assert inside(north) == inside(south) == 2
