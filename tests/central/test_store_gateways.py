"""Gateways joining, their tokens, two computers on one identity, and those who operate the central."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.central.faults import EnrolError, NotFound, Refused, TokenError
from gateway.central.store import Store
from tests.central.conftest import Clock
from tests.central.storerig import MACHINE, OTHER_MACHINE, enrol


def refusal(store: Store, token: str, machine: str = MACHINE) -> str:
    with pytest.raises(TokenError) as caught:
        store.authenticate(token, machine)
    return caught.value.code


def test_enrol(store: Store) -> None:
    """A code of the protocol's form, however it is typed, joins the gateway that it was made for."""
    store.create_venue("annexe")
    code = store.enrolment_code("north", "annexe", ttl_s=60, by="test")
    assert re.fullmatch(r"[2-9A-HJ-NP-Z]{4}(-[2-9A-HJ-NP-Z]{4}){2}", code)
    joined = store.enrol(f" {code.lower().replace('-', ' ')}", MACHINE, "north-pc", "0.1.0")
    assert (joined.gateway, joined.venue) == ("north", "annexe")
    row = store.authenticate(joined.token, MACHINE)
    assert (row.id, row.venue, row.hostname, row.machine, row.revoked) == (
        "north", "annexe", "north-pc", MACHINE, False
    )  # fmt: skip
    assert joined.token.isascii()


def test_code_of_a_code(store: Store, clock: Clock) -> None:
    """Unknown, expired, used by another machine, and used when its token was used: refused."""
    code = store.enrolment_code("north", "main", ttl_s=60, by="test")
    with pytest.raises(EnrolError):
        store.enrol("AAAA-BBBB-CCCC", MACHINE, "pc", "1")
    with pytest.raises(EnrolError):
        store.enrol("", MACHINE, "pc", "1")
    with pytest.raises(EnrolError, match="machine"):
        store.enrol(code, "PC", "pc", "1")
    lost = store.enrol(code, MACHINE, "pc", "1").token
    again = store.enrol(code, MACHINE, "pc", "1").token
    with pytest.raises(EnrolError):
        store.enrol(code, OTHER_MACHINE, "pc", "1")
    assert refusal(store, lost) == "bad_token"
    store.authenticate(again, MACHINE)
    with pytest.raises(EnrolError):
        store.enrol(code, MACHINE, "pc", "1")
    late = store.enrolment_code("south", "main", ttl_s=60, by="test")
    clock.wait(61 / 86_400)
    with pytest.raises(EnrolError):
        store.enrol(late, MACHINE, "pc", "1")


@pytest.mark.parametrize(
    ("gateway", "venue", "ttl"), [("", "main", 60), ("g\n", "main", 60), ("g", "main", 0)]
)
def test_codes_that_are_not_made(store: Store, gateway: str, venue: str, ttl: int) -> None:
    """A gateway has a name, and a code a life."""
    with pytest.raises(Refused):
        store.enrolment_code(gateway, venue, ttl_s=ttl, by="test")
    with pytest.raises(NotFound):
        store.enrolment_code("g", "nowhere", ttl_s=60, by="test")


def test_tokens_that_are_none(store: Store) -> None:
    """Made up, cut, or with a number of one's own: unknown."""
    token = enrol(store)
    name, _, secret, mac = token.split(".")
    for wrong in (
        "",
        "....",
        "x",
        token[:-1],
        token + "x",
        f"{name}.9.{secret}.{mac}",
        "\ud800",
        "\u00e9." * 3,
    ):
        assert refusal(store, wrong) == "bad_token"
    assert store.conflicts() == []


def test_another_machine(store: Store, clock: Clock) -> None:
    """A token from another computer is refused, and both are shown, without the whole of any secret."""
    token = enrol(store)
    heard: list[tuple[str, str | None]] = []
    store.on_change = lambda venue, gateway: heard.append((venue, gateway))
    assert refusal(store, token, OTHER_MACHINE) == "other_machine"
    [conflict] = store.conflicts()
    assert (conflict.kind, conflict.gateways) == ("instance", ["north"])
    assert conflict.detail["machine"] == OTHER_MACHINE[:12]
    assert token not in str(conflict)
    assert refusal(store, token, OTHER_MACHINE) == "other_machine"
    assert store.conflicts() == [conflict]
    clock.wait(1)
    refusal(store, token, OTHER_MACHINE)
    [later] = store.conflicts()
    assert later.at > conflict.at
    assert store.authenticate(token, MACHINE).id == "north"
    assert heard == []


def test_renewal(store: Store, clock: Clock) -> None:
    """After a day there is a new token; the old one holds until the new one was used, and is used up then."""
    old = enrol(store)
    store.authenticate(old, MACHINE)
    assert store.renew_token("north") is None
    clock.wait(1.01)
    new = store.renew_token("north")
    assert new is not None
    assert store.renew_token("north") is None
    store.authenticate(old, MACHINE)
    store.authenticate(new, MACHINE)
    assert refusal(store, old) == "token_used_up"
    assert [c.kind for c in store.conflicts()] == ["instance"]
    store.authenticate(new, MACHINE)
    clock.wait(0.9)
    assert store.renew_token("north") is None


def test_renewal_whose_answer_was_lost(store: Store, clock: Clock) -> None:
    """It is offered again an hour later, and the first of those that comes back ends the older ones."""
    old = enrol(store)
    store.authenticate(old, MACHINE)
    clock.wait(1.01)
    lost = store.renew_token("north")
    clock.wait(1.1 / 24)
    second = store.renew_token("north")
    assert lost is not None
    assert second is not None
    store.authenticate(old, MACHINE)
    store.authenticate(second, MACHINE)
    assert refusal(store, old) == refusal(store, lost) == "token_used_up"


def test_enrolled_anew(store: Store) -> None:
    """A new enrolment ends the instance before; when that comes back from its computer, both are shown."""
    old = enrol(store)
    store.authenticate(old, MACHINE)
    new = enrol(store, machine=OTHER_MACHINE)
    assert refusal(store, old, MACHINE) == "bad_token"
    assert [c.kind for c in store.conflicts()] == ["instance"]
    assert store.authenticate(new, OTHER_MACHINE).machine == OTHER_MACHINE


def test_rotated(store: Store) -> None:
    """A token made by hand ends the ones before at once, and is no sign of two computers."""
    with pytest.raises(NotFound):
        store.rotate_token("north")
    old = enrol(store)
    heard: list[tuple[str, str | None]] = []
    store.on_change = lambda venue, gateway: heard.append((venue, gateway))
    new = store.rotate_token("north")
    assert heard == [("main", "north")]
    assert refusal(store, old) == "bad_token"
    assert store.authenticate(new, MACHINE).id == "north"
    assert store.conflicts() == []


def test_revoked(store: Store) -> None:
    """A revoked gateway is known as such, gets no commands, and can be enrolled again."""
    token = enrol(store)
    heard: list[tuple[str, str | None]] = []
    store.on_change = lambda venue, gateway: heard.append((venue, gateway))
    store.revoke_gateway("north")
    assert heard == [("main", "north")]
    assert store.authenticate(token, MACHINE).revoked
    assert store.gateways()[0].revoked
    with pytest.raises(Refused):
        store.command("north", "open", lane="a", by="test")
    with pytest.raises(NotFound):
        store.revoke_gateway("south")
    assert not store.authenticate(enrol(store), MACHINE).revoked


def test_tokens_outlive_a_restored_backup(
    open_store: Callable[..., Store], tmp_path: Path, clock: Clock, own_file: None
) -> None:
    """A token given after the backup proves itself, on its own machine alone; older ones are used up."""
    store = open_store()
    old = enrol(store)
    store.authenticate(old, MACHINE)
    store.close()
    shutil.copytree(tmp_path / "central", tmp_path / "restored")
    store = open_store()
    clock.wait(1.01)
    new = store.renew_token("north")
    assert new is not None
    store.authenticate(new, MACHINE)
    unknown = enrol(store, "south")
    store.close()

    restored = open_store("restored")
    assert refusal(restored, new, OTHER_MACHINE) == "bad_token"
    assert refusal(restored, unknown) == "bad_token"
    assert restored.authenticate(new, MACHINE).id == "north"
    assert restored.authenticate(new, MACHINE).id == "north"
    assert refusal(restored, old) == "token_used_up"


def test_seen(open_store: Callable[..., Store], clock: Clock) -> None:
    """The last condition is shown at once, written at the latest with the end, and bounded."""
    store = open_store()
    enrol(store)
    assert store.gateways()[0].seen_at is None
    store.seen("north", {"version": "0.2.0", "cursor": "c"})
    store.seen("north", None)
    at = store.gateways()[0].seen_at
    store.seen("north", {"x": "y" * 10_000})
    row = store.gateways()[0]
    assert (row.condition, row.version) == ({"version": "0.2.0", "cursor": "c"}, "0.2.0")
    assert at is not None
    assert row.seen_at is not None
    assert row.seen_at > at
    store.close()
    assert open_store().gateways() == [row]


def test_only_digests_are_stored(store: Store, own_file: None) -> None:
    """Neither a token nor a code is anywhere in the database."""
    code = store.enrolment_code("north", "main", ttl_s=60, by="test")
    secrets = [code, store.enrol(code, MACHINE, "pc", "1").token, store.create_token("desk", "operate")]
    secrets.append((store.directory / "admin.token").read_text().strip())
    with sqlite3.connect(store.directory / "central.db") as conn:
        dump = "\n".join(conn.iterdump())
    conn.close()
    assert not any(secret in dump for secret in secrets)


# --- those who operate it --------------------------------------------------------------------------------


def test_first_admin_token(store: Store) -> None:
    """The first start writes a token with the role admin, for the owner alone."""
    path = store.directory / "admin.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert store.who(path.read_text().strip()) == ("admin", "admin")


def test_admin_tokens(store: Store) -> None:
    """Each has a name and a role; a revoked one is worth nothing; the last admin stays."""
    desk = store.create_token("desk", "operate")
    assert store.who(desk) == ("desk", "operate")
    assert store.who("x") is store.who("") is None
    assert [(t.name, t.role) for t in store.tokens()] == [("admin", "admin"), ("desk", "operate")]
    with pytest.raises(Refused, match="desk"):
        store.create_token("desk", "read")
    with pytest.raises(Refused, match="role"):
        store.create_token("boss", "owner")
    store.revoke_token("desk")
    assert store.who(desk) is None
    with pytest.raises(NotFound):
        store.revoke_token("desk")
    with pytest.raises(Refused, match="last"):
        store.revoke_token("admin")


def test_admin_tokens_stay(open_store: Callable[..., Store]) -> None:
    """A second start makes no second token."""
    token = (open_store().directory / "admin.token").read_text()
    again = open_store()
    assert (again.directory / "admin.token").read_text() == token
    assert len(again.tokens()) == 1
