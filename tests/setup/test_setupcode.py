"""The set-up code: what a scan of it tells of the scanner, through the gate's own decoders."""

from __future__ import annotations

import json
import re
from importlib import resources
from itertools import combinations
from pathlib import Path

import pytest

from gateway.config import Layout
from gateway.readers.keyboard import EVENT
from gateway.setup.code128 import QUIET, blocks, modules, svg, symbols
from gateway.setup.run import TITLE
from gateway.setup.setupcode import LAYOUTS, TEXT, EveryLayout, Learned, from_serial

TABLES = json.loads(
    resources.files("gateway.readers").joinpath("keyboard_layouts.json").read_text(encoding="utf-8")
)
SHIFT, ALTGR, ENTER, CTRL, C = 42, 100, 28, 29, 46
_MODIFIERS = ((), (SHIFT,), (ALTGR,), (SHIFT, ALTGR))


def chords(layout: Layout, text: str) -> list[tuple[int, ...]]:
    """The keys that a wedge set to this layout presses for a text: the first way that there is."""
    found = []
    for char in text:
        ways = [
            (level, TABLES["codes"][key])
            for key, levels in TABLES[layout].items()
            for level, made in enumerate(levels)
            if made == char and not (layout == "us" and level > 1)
        ]
        level, key = min(ways)
        found.append((*_MODIFIERS[level], key))
    return found


def pressed(keys: list[tuple[int, ...]], pause: int = 2000) -> bytes:
    """The event device's bytes for chords and Enter; ``pause`` between two chords in microseconds."""
    data, now = b"", 1_000_000_000

    def report(key: int, value: int) -> None:
        nonlocal data
        data += EVENT.pack(now // 1_000_000, now % 1_000_000, 1, key, value) + EVENT.pack(0, 0, 0, 0, 0)

    for chord in [*keys, (ENTER,)]:
        for key in chord:
            report(key, 1)
        for key in reversed(chord):
            report(key, 0)
        now += pause
    return data


def scanned(layout: Layout, text: str = TEXT, pause: int = 2000) -> Learned:
    learned = EveryLayout().feed(pressed(chords(layout, text), pause))
    assert learned is not None
    return learned


# What ASCII does not tell apart is one layout as far as codes go.
SAME = {"fi": "se"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_is_learned(layout: Layout) -> None:
    """A wedge in each layout types the set-up code, and that layout is what is configured."""
    learned = scanned(layout)
    assert learned.code == TEXT.encode()
    assert learned.settings.get("layout", "us") == SAME.get(layout, layout)
    assert (learned.layout_known, learned.notes) == (True, ())


def test_every_two_layouts_differ_in_the_code() -> None:
    """The text is chosen so that two layouts press different keys for it, all but those that ASCII cannot
    tell apart: those agree about every character of ASCII that both can type."""

    def keys(layout: Layout, char: str) -> set[tuple[str, int]]:
        return {
            (key, level)
            for key, levels in TABLES[layout].items()
            for level, made in enumerate(levels)
            if made == char
        }

    alike = []
    for one, other in combinations(LAYOUTS, 2):
        if all(keys(one, char) & keys(other, char) for char in TEXT):
            alike.append((one, other))
            for char in map(chr, range(33, 127)):
                assert not keys(one, char) or not keys(other, char) or keys(one, char) & keys(other, char)
    assert alike == [("se", "fi")]


def test_alt_mode_and_other_quirks() -> None:
    """Characters typed as numbers fit every layout; a wedge that leaves out # and \\, or swaps capitals, is
    recognised and told about; slow typing and an AIM identifier become settings."""
    keypad = dict(zip("0123456789", (82, 79, 80, 81, 75, 76, 77, 71, 72, 73), strict=True))
    every, data, now = EveryLayout(), b"", 1_000_000_000
    for char in TEXT:
        for key, value in [(56, 1), *((keypad[d], v) for d in f"{ord(char):03}" for v in (1, 0)), (56, 0)]:
            data += EVENT.pack(now // 1_000_000, now % 1_000_000, 1, key, value)
            now += 1000
    data += EVENT.pack(now // 1_000_000, now % 1_000_000, 1, ENTER, 1)
    learned = every.feed(data)
    assert learned is not None
    assert (learned.code, learned.settings, learned.notes) == (TEXT.encode(), {}, ())

    learned = scanned("de", TEXT.replace("#", "").replace("\\", ""))
    assert learned.settings == {"layout": "de"}
    assert "Alt mode" in learned.notes[0]
    learned = scanned("fr", TEXT.swapcase())
    assert learned.settings == {"layout": "fr"}
    assert "Caps Lock" in learned.notes[0]
    learned = scanned("de", TEXT, pause=60_000)
    assert learned.settings == {"layout": "de", "idle_ms": 240}
    assert "slowly" in learned.notes[0]
    learned = scanned("it", "]C0" + TEXT)
    assert learned.settings == {"layout": "it", "strip_aim": True}


def test_another_code_tells_no_layout() -> None:
    """Any code tells which scanner it was; a keyboard's layout it does not tell. What a person presses on a
    keyboard is no code: Enter alone and Ctrl-C are told."""
    learned = scanned("us", "8K2MPX4T7Q")
    assert (learned.code, learned.layout_known) == (b"8K2MPX4T7Q", False)
    every = EveryLayout()
    assert every.feed(pressed([])) is None
    assert every.by_hand == "enter"
    every = EveryLayout()
    every.feed(pressed([(CTRL, C)]))
    assert every.by_hand == "ctrl-c"


@pytest.mark.parametrize("size", [1, 7, 24, 1000])
def test_pieces_of_events(size: int) -> None:
    """However the bytes are cut, the same is learned."""
    data, every = pressed(chords("de", TEXT)), EveryLayout()
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    assert [learned.settings for piece in pieces if (learned := every.feed(piece))] == [{"layout": "de"}]


SERIAL: list[tuple[bytes, dict[str, object]]] = [
    (b"GATE-Zy#\\\r", {}),
    (b"GATE-Zy#\\\r\n", {}),
    (b"GATE-Zy#\\\t", {}),
    (b"]C0GATE-Zy#\\\r", {"strip_aim": True}),
    (b"\x02GATE-Zy#\\\x03", {"framing": "stx_etx"}),
    (b"\x02]C0GATE-Zy#\\\x03\r", {"framing": "stx_etx", "strip_aim": True}),
    (b"GATE-Zy#\\", {"framing": "idle"}),
    (b"8K2MPX4T7Q\r", {}),
]


@pytest.mark.parametrize(("data", "settings"), SERIAL, ids=lambda value: str(value)[:30])
def test_the_frame_of_a_serial_scanner_is_learned(data: bytes, settings: dict[str, object]) -> None:
    """Suffix, STX and ETX, silence and AIM identifier become settings, of the set-up code and of others."""
    learned = from_serial(data)
    assert learned is not None
    assert learned.settings == settings
    assert learned.code in (TEXT.encode(), b"8K2MPX4T7Q")


def test_noise_and_additions_of_a_serial_scanner() -> None:
    """Noise is another speed; a speed that is not the default becomes a setting; what a scanner adds to each
    code is told."""
    for noise in (b"\xf8\x00\xc0\r", b"\x80\xff", b"\r\n", b"\x02\x03"):
        assert from_serial(noise) is None
    learned = from_serial(b"GATE-Zy#\\\r", 115200)
    assert learned is not None
    assert learned.settings == {"baudrate": 115200}
    learned = from_serial(b"QGATE-Zy#\\\r")
    assert learned is not None
    assert "adds 'Q'" in learned.notes[0]


# --- the barcode --------------------------------------------------------------------------------------


def read(row: str) -> str:
    """The text of a Code 128 barcode of code set B, from its modules."""
    widths = [len(run) for run in re.findall("1+|0+", row.strip("0"))]
    table = {modules(chr(32 + value))[QUIET + 11 :][:11]: value for value in range(95)}
    pattern = "".join("10"[place % 2] * width for place, width in enumerate(widths))
    values = [table.get(pattern[at : at + 11], -1) for at in range(11, len(pattern) - 24, 11)]
    return "".join(chr(32 + value) for value in values)


def test_the_barcode() -> None:
    """Start, check symbol and stop are Code 128's, by a published example and by reading it back; each symbol
    is as wide as it must be, with white on both sides; it fits into 80 columns."""
    # Known with the start symbol of set A, 103, and the check symbol 54: that of set B makes it one more.
    assert symbols("PJJ123C") == [104, 48, 42, 42, 17, 18, 19, 35, 55]
    row = modules(TEXT)
    assert row.startswith("0" * QUIET + "11010010000")
    assert row.endswith("1100011101011" + "0" * QUIET)
    assert len(row) == 2 * QUIET + 11 * (len(TEXT) + 2) + 13
    assert read(row) == TEXT
    lines = blocks(TEXT).splitlines()
    assert {len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines} == {len(row) // 2}
    assert len(row) // 2 <= 80
    for wrong in ("", "ä", "\t"):
        with pytest.raises(ValueError, match="ASCII"):
            symbols(wrong)


def test_the_drawing_in_the_docs() -> None:
    """docs/images/setup-code.svg is what ``--print-code`` writes, and its bars are the barcode."""
    drawn = svg(TEXT, TITLE)
    path = Path(__file__).parents[2] / "docs/images/setup-code.svg"
    assert path.read_text(encoding="utf-8") == drawn
    row = ["0"] * len(modules(TEXT))
    for start, width in re.findall(r"M(\d+) 4h(\d+)v40", drawn):
        row[int(start) : int(start) + int(width)] = "1" * int(width)
    assert "".join(row) == modules(TEXT)
    assert TEXT in drawn
