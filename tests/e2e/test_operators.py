"""Operators at a real gate: who may act through the sync's socket, and what stays of it; and what is told to
those who show it to visitors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from gateway import operators
from gateway.control import CallError, Client
from tests.e2e.rig import Json, Site, card, product, until, venue

FAMILY = "FAMILY1"


def records() -> list[Json]:
    found = [*venue(language="de"), product("open"), product("limited", guests=3)]
    found[-1]["rules"][0]["guest_limits"] = [{"max": 2, "per": "day"}]
    found += [product("family", guests=2), *card("S", "SWEDISH", "family"), *card("L", "LIMITED", "limited")]
    family = next(r for r in found if r.get("id") == "family")
    family["name"] = {"de": "Familie", "sv": "Familj"}
    found += [*card(1, FAMILY, "family"), *card(2, "SINGLE", "open"), *card(3, "LOST", "open", state="lost")]
    next(r for r in found if r.get("id") == "HS")["language"] = "sv-SE"
    return found


@pytest.fixture
def here(site: Callable[..., Site]) -> Site:
    """A gate that runs."""
    made = site(({"name": "north", "second_grant": "extend"},))
    made.imports(records())
    made.start()
    return made


def token(site: Site, name: str) -> str:
    done = site.run("operator", "add", name)
    assert done.status == 0, done.err
    found: str = done.json[0]["token"]
    return found


def refused(client: Client, **arguments: object) -> str:
    with pytest.raises(CallError) as told:
        client.call("operate", **arguments)
    return told.value.code


def test_an_operator_acts_and_is_recorded(here: Site) -> None:
    """With a token of `gateway operator add` the sync's socket opens a lane and sets its state, each on
    record with the operator's name; once removed, the token is worth nothing, without a restart."""
    anna, bert = token(here, "anna"), token(here, "bert")
    assert anna != bert
    assert len(anna) >= 22  # 128 bits in BASE64
    sync = here.client("sync")
    assert sync.call("operate", token=anna, act="login") == {"operator": "anna"}
    assert sync.call("operate", token=bert, act="open", lane="north") == {
        "operator": "bert",
        "lane": "north",
        "opened": True,
    }
    here.pulses(1)
    done = sync.call("operate", token=anna, act="lane", lane="north", state="closed")
    assert done == {"operator": "anna", "lane": "north", "state": "closed"}
    assert here.scan("in", "SINGLE")["verdict"] == "lane_closed"
    assert refused(sync, token=anna, act="lane", lane="north", state="ajar") == "bad_request"
    assert refused(sync, token=anna, act="open", lane="nroth") == "bad_request"
    for act in ("clear", "annul", "check", "", "apply"):
        assert refused(sync, token=anna, act=act, area="hall", seq=1) == "bad_request"
    listed = here.run("operator", "list").json
    assert [each["operator"] for each in listed] == ["anna", "bert"]
    assert here.run("operator", "remove", "anna").status == 0
    assert refused(sync, token=anna, act="open", lane="north") == "wrong_token"
    assert sync.call("operate", token=bert, act="login") == {"operator": "bert"}
    here.written()
    acts = [(e["kind"], e.get("by"), e.get("detail")) for e in here.events() if e["kind"] != "scan"]
    assert acts == [("open", "operator:bert", None), ("lane", "operator:anna", "closed")]
    here.pulses(1)


def test_tokens_are_kept_nowhere(here: Site) -> None:
    """The file has mode 0600 and no token; none stands in the log, the ledger or the metrics."""
    anna = token(here, "anna")
    sync = here.client("sync")
    sync.call("operate", token=anna, act="open", lane="north")
    assert refused(sync, token="a" + anna[1:] + "x", act="login") == "wrong_token"
    file = here.data_dir / operators.FILE
    assert file.stat().st_mode & 0o777 == 0o600
    here.written()
    metrics = here.call("metrics")["text"]
    here.stop()
    for path in here.data_dir.iterdir():
        assert anna.encode() not in path.read_bytes(), path
    assert here.gate is not None
    assert anna not in metrics + here.gate.errors() + json.dumps(here.events())


def test_wrong_tokens_are_counted_and_slowed_down(here: Site) -> None:
    """After a few wrong tokens no unknown one is even looked at for a while; whose token was right before
    goes on. Nothing that is no token is one."""
    anna, bert = token(here, "anna"), token(here, "bert")
    sync = here.client("sync")
    sync.call("operate", token=anna, act="login")
    guesses: list[object] = ["", " ", "x" * 10_000, anna + " ", anna[:-1], "ü" * 20, "\0", anna.swapcase()]
    told = [refused(sync, token=guess, act="login") for guess in guesses]
    assert told[: operators.TRIES] == ["wrong_token"] * operators.TRIES
    assert "busy" in told
    assert refused(sync, token=["x"], act="login") == refused(sync, act="login") == "bad_request"

    def slowed() -> bool:
        """A right token that was not used before has to wait its turn too, while wrong ones come."""
        until(lambda: refused(sync, token="wrong", act="open", lane="north") == "busy")
        with pytest.raises(CallError) as told:
            sync.call("operate", token=bert, act="open", lane="north")
        return told.value.code == "busy"

    assert slowed()
    for _ in range(3):
        assert sync.call("operate", token=anna, act="open", lane="north")["opened"]
    until(lambda: tried(sync, bert) == "", "bert's turn comes")
    wrong = here.metric('gateway_operators_refused_total{reason="wrong_token"}')
    busy = here.metric('gateway_operators_refused_total{reason="busy"}')
    assert wrong >= operators.TRIES
    assert busy >= 2


def tried(sync: Client, token: str) -> str:
    """Why it is refused, or nothing."""
    try:
        sync.call("operate", token=token, act="login")
    except CallError as error:
        return error.code
    return ""


def test_a_damaged_file_of_operators_lets_nobody_act(here: Site) -> None:
    """What the file says wrong is told, nobody acts, scans go on; names that are none are refused."""
    anna = token(here, "anna")
    sync = here.client("sync")
    file = here.data_dir / operators.FILE
    good = file.read_bytes()
    for bad in (
        b"",
        b"[",
        b"{}x",
        b'[{"name":"anna"}]',
        b"[1]",
        b"null",
        good.replace(b'"salt":"', b'"salt":"zz'),
    ):
        file.write_bytes(bad)
        assert refused(sync, token=anna, act="open", lane="north") == "no_operators", bad
        done = here.run("operator", "list")
        if b"zz" not in bad:
            assert done.status == 2
            assert "remove it" in done.err
    assert here.scan("in", "SINGLE")["verdict"] == "granted"
    file.write_bytes(good)
    assert sync.call("operate", token=anna, act="login") == {"operator": "anna"}
    for words in (
        ("add", "anna"),
        ("add", "../x"),
        ("add", ""),
        ("add",),
        ("remove", "nobody"),
        ("list", "x"),
    ):
        done = here.run("operator", *words)
        assert done.status == 2, words
        assert re.match(r"gateway: .{10,}", done.err), done.err


def test_a_verdict_tells_what_a_display_needs(here: Site) -> None:
    """The name of the product and the language of the message, as the holder and the venue have it; and how
    many guests may follow, which is how many scans more are granted."""
    first = here.scan("in", FAMILY)
    assert (first["name"], first["language"], first["guests"]) == ("Familie", "de", 2)
    assert first["message"] == "Willkommen."
    swedish = here.scan("in", "SWEDISH")
    assert (swedish["name"], swedish["language"], swedish["message"]) == ("Familj", "sv", "Välkommen.")
    single = here.scan("in", "SINGLE")
    assert (single["name"], single["guests"], single["language"]) == (None, 0, "de")
    lost = here.scan("in", "LOST")
    assert (lost["verdict"], lost["guests"], lost["name"]) == ("revoked", 0, None)
    for code, most in ((FAMILY, None), ("LIMITED", 2)):
        left = here.scan("in", code)["guests"]
        assert most in (None, left)
        while left:
            verdict = here.scan("in", code)
            assert (verdict["verdict"], verdict["guests"]) == ("granted", left - 1)
            assert verdict["guest"] > 0
            left -= 1
        assert here.scan("in", code)["guest"] == 0
    assert here.scan("out", FAMILY)["guests"] == 0


def test_lanes_are_told(here: Site) -> None:
    """Who watches hears of each change of a lane as it is made, and sees the same in the status."""
    here.watch()
    told = here.client("sync")
    told.call("watch")
    here.call("lane", lane="north", state="closed")
    message = told._read()
    assert message["lane"] == here.call("status")["lanes"][0]
    assert message["lane"]["state"] == "closed"
    here.boards["north"].unplug()
    fault = told._read()["lane"]
    assert (fault["lane"], fault["state"]) == ("north", "closed")
    assert fault["fault"]
    here.boards["north"].plug()
    assert told._read()["lane"]["fault"] is None
    status = here.call("status")
    assert status["venue"] == {"language": "de", "timezone": "UTC"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", status["clock"]["now"])
