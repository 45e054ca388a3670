"""Keyboard wedges: from raw input events to codes."""

from __future__ import annotations

import json
from importlib import resources
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Layout
from gateway.model import Payload
from gateway.readers.keyboard import EVENT, KEY_STATE_BYTES, KeyboardDecoder, load_layout

GAP = 50_000
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
NUMBERS: dict[str, int] = json.loads(
    resources.files("gateway.readers").joinpath("keyboard_layouts.json").read_text(encoding="utf-8")
)["codes"]
NUMBERS |= {"TAB": 15, "ENTER": 28, "CTRL": 29, "SHIFT": 42, "RSHIFT": 54, "ALT": 56, "CAPS": 58}
NUMBERS |= {
    "KPENTER": 96,
    "ALTGR": 100,
    "KPDOT": 83,
    "KPSLASH": 98,
    "KPMINUS": 74,
    "KPPLUS": 78,
    "KPSTAR": 55,
}
KEYPAD = dict(zip("0123456789", (82, 79, 80, 81, 75, 76, 77, 71, 72, 73), strict=True))
NUMBERS |= {f"KP{digit}": key for digit, key in KEYPAD.items()}

SYN = (0, 0, 0)
DROPPED = (0, 3, 0)


class Typist:
    """Makes the bytes of key presses, one report every millisecond."""

    def __init__(self, start: int = 1_000_000_000_000) -> None:
        self.now = start
        self.data = b""

    def event(self, kind: int, code: int, value: int) -> None:
        self.data += EVENT.pack(self.now // 1_000_000, self.now % 1_000_000, kind, code, value)

    def report(self, key: int, value: int) -> None:
        self.event(4, 4, 0x70000 + key)
        self.event(1, key, value)
        self.event(*SYN)
        self.now += 1000

    def press(self, chord: str) -> Typist:
        """Press keys joined by + in that order, and release them in the other."""
        keys = [NUMBERS[name] if name in NUMBERS else NUMBERS["KEY_" + name] for name in chord.split("+")]
        for key in keys:
            self.report(key, 1)
        for key in reversed(keys):
            self.report(key, 0)
        return self

    def keys(self, *chords: str) -> Typist:
        for chord in chords:
            self.press(chord)
        return self

    def alt(self, digits: str) -> Typist:
        self.report(NUMBERS["ALT"], 1)
        for digit in digits:
            self.press(f"KP{digit}")
        self.report(NUMBERS["ALT"], 0)
        return self

    def wait(self, micros: int) -> Typist:
        self.now += micros
        return self

    def take(self) -> bytes:
        data, self.data = self.data, b""
        return data


def typed(layout: Layout, *chords: str) -> str:
    """What these chords and Enter give."""
    (payload,) = KeyboardDecoder(layout, GAP).feed(Typist().keys(*chords, "ENTER").take())
    return payload.data.decode()


# Chords on the keys named as on a us keyboard, and what each layout makes of them: written from the
# printed keyboards, not from the table under test.
TABLE: list[tuple[Layout, str, str]] = [
    ("us", "A SHIFT+B 1 SHIFT+2 Y Z MINUS SHIFT+EQUAL SLASH LEFTBRACE BACKSLASH", "aB1@yz-+/[\\"),
    ("gb", "SHIFT+2 SHIFT+3 SHIFT+APOSTROPHE BACKSLASH 102ND SHIFT+BACKSLASH", '"£@#\\~'),
    ("de", "Y Z SHIFT+Y SHIFT+Z SHIFT+7 MINUS SLASH RIGHTBRACE SHIFT+RIGHTBRACE", "zyZY/ß-+*"),
    ("de", "SEMICOLON APOSTROPHE LEFTBRACE SHIFT+SEMICOLON SHIFT+0 102ND SHIFT+102ND", "öäüÖ=<>"),
    ("de", "ALTGR+Q ALTGR+7 ALTGR+8 ALTGR+9 ALTGR+0 ALTGR+MINUS ALTGR+102ND ALTGR+E", "@{[]}\\|€"),
    ("fr", "SHIFT+1 SHIFT+2 SHIFT+3 SHIFT+4 SHIFT+5 SHIFT+6 SHIFT+7 SHIFT+8 SHIFT+9 SHIFT+0", "1234567890"),
    ("fr", "A Q W Z SEMICOLON SHIFT+Q 1 2 6 SHIFT+DOT", "qazwmA&é-/"),
    ("fr", "ALTGR+0 ALTGR+3 ALTGR+5 ALTGR+MINUS ALTGR+4 ALTGR+EQUAL ALTGR+8 ALTGR+6", "@#[]{}\\|"),
    ("no", "ALTGR+2 ALTGR+7 ALTGR+8 ALTGR+9 ALTGR+0 LEFTBRACE SEMICOLON APOSTROPHE", "@{[]}åøæ"),
    ("no", "MINUS SLASH SHIFT+7 SHIFT+0 EQUAL", "+-/=\\"),
    ("se", "ALTGR+2 ALTGR+7 ALTGR+8 ALTGR+9 ALTGR+0 ALTGR+MINUS LEFTBRACE SEMICOLON", "@{[]}\\åö"),
    ("se", "MINUS SLASH SHIFT+7 SHIFT+0 APOSTROPHE SHIFT+2", '+-/=ä"'),
    ("dk", "ALTGR+2 ALTGR+7 ALTGR+8 ALTGR+9 ALTGR+0 LEFTBRACE SEMICOLON APOSTROPHE", "@{[]}åæø"),
    ("fi", "ALTGR+2 ALTGR+7 ALTGR+8 ALTGR+9 ALTGR+0 ALTGR+MINUS LEFTBRACE APOSTROPHE", "@{[]}\\åä"),
    (
        "es",
        "ALTGR+2 ALTGR+3 ALTGR+LEFTBRACE ALTGR+RIGHTBRACE ALTGR+GRAVE SEMICOLON SHIFT+7 SLASH",
        "@#[]\\ñ/-",
    ),
    (
        "it",
        "ALTGR+SEMICOLON ALTGR+APOSTROPHE ALTGR+LEFTBRACE ALTGR+RIGHTBRACE LEFTBRACE GRAVE SHIFT+7",
        "@#[]è\\/",
    ),
]


@pytest.mark.parametrize(("layout", "chords", "text"), TABLE)
def test_layouts(layout: Layout, chords: str, text: str) -> None:
    """Keys give the characters that are printed on them in that country."""
    assert typed(layout, *chords.split()) == text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_types_letters_and_digits(layout: Layout) -> None:
    """Each layout has every letter and digit somewhere, and each key has its four levels."""
    levels = load_layout(layout)
    assert all(len(level) == 4 for level in levels.values())
    characters = {char for level in levels.values() for char in level[:2]}
    assert set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") <= characters


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_a_layout_has_can_be_typed(layout: Layout) -> None:
    """Every printable character of the table comes out when its own key is pressed."""
    names = {number: name for name, number in NUMBERS.items() if name.startswith("KEY_")}
    modifiers = ("", "SHIFT+", "ALTGR+", "ALTGR+SHIFT+")
    for number, levels in load_layout(layout).items():
        for modifier, char in zip(modifiers, levels, strict=True):
            if len(char) == 1 and char != " ":
                assert typed(layout, modifier + names[number].removeprefix("KEY_")) == char


@pytest.mark.parametrize("end", ["ENTER", "KPENTER", "TAB", "CTRL+M"])
def test_ends(end: str) -> None:
    """Enter, keypad Enter and Tab end a code, and CR typed with Ctrl."""
    decoder = KeyboardDecoder("us", GAP)
    assert decoder.feed(Typist().keys("A", "1", end).take()) == [Payload(b"a1")]
    assert not decoder.pending


def test_a_lone_enter_is_no_scan() -> None:
    """Enter with nothing before it gives nothing."""
    assert KeyboardDecoder("us", GAP).feed(Typist().keys("ENTER", "TAB").take()) == []


def test_either_shift_and_a_shift_held_on() -> None:
    """Both Shift keys work, and one held over several keys."""
    typist = Typist()
    typist.press("RSHIFT+A+B")
    assert KeyboardDecoder("us", GAP).feed(typist.press("C").press("ENTER").take()) == [Payload(b"ABc")]


def test_caps_lock() -> None:
    """Caps Lock turns letters round, national ones too, and nothing else; Shift turns them back."""
    assert (
        typed("de", "CAPS", "A", "1", "APOSTROPHE", "SHIFT+A", "MINUS", "SHIFT+1", "CAPS", "A") == "A1Äaß!a"
    )
    assert typed("fr", "CAPS", "2", "SHIFT+2", "Q") == "é2A"


def test_keypad() -> None:
    """Keypad keys type digits and operators, whatever Shift and NumLock say."""
    assert typed("de", *(f"KP{digit}" for digit in "0123456789")) == "0123456789"
    assert typed("fr", "KPDOT", "KPSLASH", "KPMINUS", "KPPLUS", "KPSTAR", "SHIFT+KP1") == "./-+*1"


@pytest.mark.parametrize(
    ("layout", "digits", "text"),
    [
        ("us", "065", "A"),
        ("us", "64", "@"),
        ("us", "132", "ä"),  # the same in 437 and 850
        ("us", "155", "¢"),  # 437
        ("de", "155", "ø"),  # 850
        ("de", "0228", "ä"),
        ("de", "0128", "€"),
        ("de", "0129", "\x81"),
        ("us", "029", "\x1d"),
        ("us", "8364", "€"),
        ("us", "08364", "€"),
        ("us", "55296", ""),
        ("us", "99999999", ""),
    ],
)
def test_alt_codes(layout: Layout, digits: str, text: str) -> None:
    """Alt and keypad digits: code page of the console, with a leading 0 Windows', above 255 Unicode."""
    typist = Typist().press("X").alt(digits).keys("Y" if layout == "us" else "Z", "ENTER")
    assert KeyboardDecoder(layout, GAP).feed(typist.take()) == [Payload(f"x{text}y".encode())]


def test_cr_as_an_alt_code_ends_a_code() -> None:
    """A scanner that types everything as Alt codes types its suffix so too."""
    typist = Typist().alt("056").alt("075").alt("013")
    assert KeyboardDecoder("us", GAP).feed(typist.take()) == [Payload(b"8K")]


@pytest.mark.parametrize(
    ("layout", "chord", "char"),
    [
        ("us", "CTRL+RIGHTBRACE", "\x1d"),
        ("de", "CTRL+RIGHTBRACE", "\x1d"),
        ("us", "CTRL+A", "\x01"),
        ("de", "CTRL+Y", "\x1a"),
        ("us", "CTRL+SHIFT+6", "\x1e"),
        ("us", "CTRL+LEFTBRACE", "\x1b"),
        ("us", "CTRL+5", ""),
        ("us", "ALT+A", ""),
        ("de", "CTRL+ALT+Q", "@"),
        ("de", "CTRL+ALTGR+Q", "@"),
    ],
)
def test_ctrl_and_alt(layout: Layout, chord: str, char: str) -> None:
    """Ctrl gives control characters (GS is Ctrl and ]), Ctrl with Alt is AltGr, Alt alone types nothing."""
    assert typed(layout, "1" if layout != "fr" else "SHIFT+1", chord, "2") == f"1{char}2"


@pytest.mark.parametrize(
    ("chords", "text"),
    [
        ("GRAVE SPACE", "^"),
        ("SHIFT+EQUAL SPACE", "`"),
        ("EQUAL E", "é"),
        ("GRAVE SHIFT+A", "Â"),
        ("GRAVE X", "^x"),
        ("GRAVE GRAVE", "^^"),
        ("A GRAVE", "a^"),
        ("EQUAL", "\u00b4"),
    ],
)
def test_dead_keys(chords: str, text: str) -> None:
    """A dead key gives the accented letter where there is one, else the accent and the character."""
    assert typed("de", *chords.split()) == text


@pytest.mark.parametrize("layout", ["no", "se", "dk", "fi"])
def test_dead_tilde(layout: Layout) -> None:
    """In the North the tilde is a dead key with AltGr."""
    assert typed(layout, "ALTGR+RIGHTBRACE", "SPACE", "ALTGR+RIGHTBRACE", "N") == "~ñ"


def test_autorepeat_is_ignored() -> None:
    """A key held down is one character, and holding it is no silence that ends."""
    typist = Typist()
    typist.report(NUMBERS["KEY_A"], 1)
    for _ in range(20):
        typist.report(NUMBERS["KEY_A"], 2)
    typist.report(NUMBERS["KEY_A"], 0)
    assert KeyboardDecoder("us", GAP).feed(typist.press("ENTER").take()) == [Payload(b"a")]


def test_unknown_keys_are_ignored() -> None:
    """Keys that type nothing leave the code as it is."""
    typist = Typist().press("A")
    typist.report(113, 1)
    typist.report(0x2FF, 1)
    assert KeyboardDecoder("us", GAP).feed(typist.press("B").press("ENTER").take()) == [Payload(b"ab")]


def test_silence_tears_a_code() -> None:
    """Keys before a silence longer than the gap are dropped and counted; as long as it, they are kept."""
    decoder = KeyboardDecoder("us", GAP)
    typist = Typist().keys("A", "B").wait(GAP).keys("C", "ENTER")
    assert decoder.feed(typist.take()) == [Payload(b"c")]
    assert decoder.dropped == 1
    typist.wait(GAP).keys("A").wait(GAP - 2000).keys("B", "ENTER")
    assert decoder.feed(typist.take()) == [Payload(b"ab")]
    assert decoder.dropped == 1


def test_flush_drops_half_a_code_and_its_rest() -> None:
    """The owner's timer counts the torn code; keys that belong to it by their time are no new code."""
    decoder = KeyboardDecoder("us", GAP)
    typist = Typist().keys("A", "B")
    decoder.feed(typist.take())
    assert decoder.pending
    assert decoder.flush() == []
    assert not decoder.pending
    assert decoder.feed(typist.keys("C", "ENTER").take()) == []
    assert decoder.feed(typist.keys("D", "ENTER").take()) == [Payload(b"d")]
    assert decoder.dropped == 1


def overflow(typist: Typist, key: str) -> None:
    """What the kernel leaves after an overflow: SYN_DROPPED and the end of a report."""
    typist.event(*DROPPED)
    typist.event(1, NUMBERS[key], 1)
    typist.event(*SYN)


def test_overflow_drops_the_code_to_its_end() -> None:
    """After SYN_DROPPED the rest of that code is no code; it is counted once; the next code is right."""
    decoder = KeyboardDecoder("us", GAP)
    typist = Typist().keys("A", "B").wait(200_000)
    overflow(typist, "KEY_C")
    assert decoder.feed(typist.keys("D", "ENTER").take()) == []
    assert decoder.needs_keys
    assert decoder.dropped == 1
    assert decoder.feed(typist.keys("E", "F", "ENTER").take()) == [Payload(b"ef")]
    assert decoder.dropped == 1


def test_overflow_ends_with_silence_too() -> None:
    """Where the code's end was lost itself, the silence after it ends the skipping."""
    decoder = KeyboardDecoder("us", GAP)
    typist = Typist().keys("A")
    overflow(typist, "KEY_B")
    assert decoder.feed(typist.keys("C").wait(GAP + 1000).keys("D", "ENTER").take()) == [Payload(b"d")]
    assert decoder.dropped == 1


def test_modifiers_are_taken_from_the_key_state() -> None:
    """A Shift released in the lost events is released; one that is held by the bitmap is held."""
    decoder = KeyboardDecoder("us", GAP)
    typist = Typist()
    typist.report(NUMBERS["SHIFT"], 1)
    overflow(typist, "KEY_A")
    decoder.feed(typist.take())
    decoder.keys(bytes(KEY_STATE_BYTES), typist.now)
    assert not decoder.needs_keys
    assert decoder.feed(typist.wait(GAP + 1).keys("A", "ENTER").take()) == [Payload(b"a")]
    held = bytearray(KEY_STATE_BYTES)
    held[NUMBERS["RSHIFT"] // 8] |= 1 << NUMBERS["RSHIFT"] % 8
    decoder.keys(bytes(held), typist.now)
    assert decoder.feed(typist.wait(GAP + 1).keys("A", "ENTER").take()) == [Payload(b"A")]


def test_keys_that_follow_the_key_state_at_once_are_a_torn_code() -> None:
    """Asking for the state empties the kernel's buffer: what comes right after has lost its beginning."""
    decoder = KeyboardDecoder("us", GAP)
    typist = Typist()
    decoder.keys(b"", typist.now)
    assert decoder.feed(typist.wait(GAP - 1000).keys("A", "ENTER").take()) == []
    assert decoder.dropped == 1
    assert decoder.feed(typist.keys("B", "ENTER").take()) == [Payload(b"b")]


def test_too_long_a_code_is_dropped() -> None:
    """Beyond the bound the code is dropped up to its end and counted once; 513 bytes are still delivered."""
    decoder = KeyboardDecoder("us", GAP)
    assert decoder.feed(Typist().keys(*["A"] * 513, "ENTER").take()) == [Payload(b"a" * 513)]
    typist = Typist().keys(*["A"] * 1100, "ENTER", "B", "ENTER")
    assert decoder.feed(typist.take()) == [Payload(b"b")]
    assert decoder.dropped == 1


def test_aim_identifier() -> None:
    """An AIM identifier typed in front is reported, and taken off where the venue says so."""
    data = Typist().keys("RIGHTBRACE", "SHIFT+Q", "1", "A", "ENTER").take()
    assert KeyboardDecoder("us", GAP).feed(data) == [Payload(b"]Q1a", "]Q1")]
    assert KeyboardDecoder("us", GAP, strip_aim=True).feed(data) == [Payload(b"a", "]Q1")]


events = st.lists(
    st.one_of(
        st.tuples(st.just("key"), st.sampled_from(sorted(NUMBERS))),
        st.tuples(st.just("wait"), st.integers(0, 2 * GAP)),
        st.tuples(st.just("overflow"), st.just("KEY_A")),
        st.tuples(st.just("alt"), st.sampled_from(["65", "0228", "8364", "7"])),
    ),
    max_size=12,
)


def stream_of(steps: list[tuple[str, int | str]]) -> bytes:
    typist = Typist()
    for step, value in steps:
        if step == "key":
            typist.press(str(value))
        elif step == "wait":
            typist.wait(int(value))
        elif step == "alt":
            typist.alt(str(value))
        else:
            overflow(typist, str(value))
    return typist.take()


@given(st.sampled_from(LAYOUTS), events, st.lists(st.integers(0, 3000), max_size=20))
def test_any_split_gives_the_same(
    layout: Layout, steps: list[tuple[str, int | str]], cuts: list[int]
) -> None:
    """However a stream is cut, also within an event, the scans and the drops are the same."""
    stream = stream_of(steps)
    whole, parts = KeyboardDecoder(layout, GAP, max_bytes=6), KeyboardDecoder(layout, GAP, max_bytes=6)
    expected = whole.feed(stream)
    got = []
    at = 0
    for cut in [*sorted(cuts), len(stream)]:
        got += parts.feed(stream[at : max(at, cut)])
        at = max(at, cut)
    assert got == expected
    assert parts.dropped == whole.dropped


@given(
    st.lists(st.one_of(st.binary(max_size=200), events.map(stream_of)), max_size=6), st.binary(max_size=120)
)
def test_garbage_does_no_harm(chunks: list[bytes], bitmap: bytes) -> None:
    """Arbitrary bytes raise nothing, and the first code after silence is right."""
    decoder = KeyboardDecoder("us", GAP)
    length = 0
    for chunk in chunks:
        length += len(chunk)
        decoder.feed(chunk)
    decoder.flush()
    decoder.feed(bytes(-length % EVENT.size))  # the kernel never gives part of an event
    typist = Typist(start=2**62)
    decoder.feed(EVENT.pack(2**60, 0, *SYN))
    decoder.keys(bitmap, 0)
    decoder.keys(bytes(KEY_STATE_BYTES), 0)
    typist.press("ENTER")  # whatever the clock said: this ends what was there
    decoder.feed(typist.take())
    assert decoder.feed(typist.keys("8", "K", "ENTER").take())[-1].data.lower() == b"8k"
