"""Odd codes, and two readers at the same moment."""

from __future__ import annotations

from collections.abc import Callable

from tests.e2e.rig import Site, card, product, until, venue

ROUNDS = 50
NORTH = {"name": "north", "second_grant": "extend"}
READERS = ({"name": "a", "point": "north-in"}, {"name": "b", "point": "north-in"})


def tickets() -> list[dict[str, object]]:
    """Single-use codes."""
    records = [*venue(), product("single", limits=[{"max": 1, "per": "term"}])]
    for n in range(ROUNDS):
        records += card(n, f"TICKET{n:04}", "single")
    return records


def check_once(site: Site, lanes: tuple[str, ...]) -> None:
    """Scan each code at both readers back to back; exactly one is granted, recorded and opens."""
    site.imports(tickets())
    site.start()
    site.watch()
    a, b = site.scanners["a"], site.scanners["b"]
    for n in range(ROUNDS):
        first, second = (a, b) if n % 2 else (b, a)
        code = f"TICKET{n:04}\r".encode()
        first.send(code)
        second.send(code)
        verdicts = sorted(site.verdict()["verdict"] for _ in range(2))
        assert verdicts == ["granted", "limit_reached"]
        total = n + 1
        until(lambda: sum(site.boards[lane].pulses() for lane in lanes) >= total)  # noqa: B023
    site.written()
    scans = [e for e in site.events() if e["kind"] == "scan"]
    granted = [e["credential"] for e in scans if e["verdict"] == "granted"]
    assert sorted(granted) == sorted(f"C{n}" for n in range(ROUNDS))
    assert len(scans) == 2 * ROUNDS
    assert sum(site.boards[lane].pulses() for lane in lanes) == ROUNDS


def test_single_use_code_at_two_readers_of_one_point(site: Callable[..., Site]) -> None:
    """Two readers of one point present a single-use code at once: one grant, one pulse."""
    check_once(site((NORTH,), ({"name": "north-in", "lane": "north"},), READERS), ("north",))


def test_single_use_code_at_two_lanes(site: Callable[..., Site]) -> None:
    """The same at two points of two lanes, each with a board of its own."""
    lanes = (NORTH, {**NORTH, "name": "south"})
    points = ({"name": "north-in", "lane": "north"}, {"name": "south-in", "lane": "south"})
    readers = ({"name": "a", "point": "north-in"}, {"name": "b", "point": "south-in"})
    check_once(site(lanes, points, readers), ("north", "south"))


def test_single_use_code_while_its_passage_is_awaited(site: Callable[..., Site]) -> None:
    """With a passage sensor a pending grant counts as well: the other lane refuses, and no second pulse."""
    sensor = {"passage": {"driver": "memory", "timeout_s": 60}, "second_grant": "extend"}
    lanes = ({"name": "north", **sensor}, {"name": "south", **sensor})
    points = ({"name": "north-in", "lane": "north"}, {"name": "south-in", "lane": "south"})
    readers = ({"name": "a", "point": "north-in"}, {"name": "b", "point": "south-in"})
    check_once(site(lanes, points, readers), ("north", "south"))


LONG = "L" + "0123456789" * 49 + "ABCDEFGHI"
WIDE = "é漢🎫 x" * 30


ODD = (
    (LONG.encode(), "granted"),
    (b"M" * 500, "unknown_credential"),
    (b"M" * 512, "unknown_credential"),
    (b"M" * 513, "malformed"),
    (b"M" * 1024, "malformed"),
    (b"", "malformed"),
    (b"GOOD\x00", "malformed"),
    (b"GO\x1dOD", "malformed"),
    (b"GOOD\x7f", "malformed"),
    ("GO\u0085OD".encode(), "malformed"),
    (b"GO\rOD", "malformed"),
    (b"GOOD\xff", "malformed"),
    ("GOÖD".encode("latin-1"), "malformed"),
    ("GO🎫".encode()[:-1], "malformed"),
    (b"GO\xed\xa0\x80", "malformed"),
    (WIDE.encode(), "granted"),
    (b" GOOD", "unknown_credential"),
    (b"good", "unknown_credential"),
)


def test_odd_codes(site: Callable[..., Site]) -> None:
    """Each odd code gets the right verdict, opens or does not, and the next scan is right."""
    reader = {"name": "in", "point": "north-in", "framing": "stx_etx"}
    lane = {"name": "north", "second_grant": "extend"}
    gate = site((lane,), ({"name": "north-in", "lane": "north"},), (reader,))
    gate.imports(
        [*venue(), product("open"), *card(1, LONG, "open"), *card(2, WIDE, "open"), *card(3, "GOOD", "open")]
    )
    gate.start()
    gate.watch()
    opened = 0
    for payload, verdict in ODD:
        gate.scanners["in"].send(b"\x02" + payload + b"\x03")
        assert gate.verdict()["verdict"] == verdict, payload
        opened += verdict == "granted"
        gate.pulses(opened)
        gate.scanners["in"].send(b"\x02GOOD\x03")
        assert gate.verdict()["credential"] == "C3", payload
        opened += 1
        gate.pulses(opened)
    gate.written()
    events = gate.events()
    expected = [verdict for _, odd in ODD for verdict in (odd, "granted")]
    assert [e["verdict"] for e in events if e["kind"] == "scan"] == expected
    assert gate.gate is not None
    text = str(events) + gate.gate.errors()
    assert LONG not in text
    assert "GOOD" not in text


def test_too_long_for_any_judgement(site: Callable[..., Site]) -> None:
    """What is beyond any code is dropped and counted, and the next scan is right; an empty line is none."""
    gate = site()
    gate.imports([*venue(), product("open"), *card(1, "GOOD", "open")])
    gate.start()
    gate.watch()
    gate.scanners["in"].send(b"\r\n\r\n" + b"X" * 100_000 + b"\r\nGOOD\r\n")
    assert gate.verdict()["credential"] == "C1"
    gate.pulses(1)
    gate.written()
    assert [e["verdict"] for e in gate.events() if e["kind"] == "scan"] == ["granted"]
    assert gate.metric('gateway_reader_dropped_total{reader="in"}') == 1
