"""HID POS scanners: report descriptors and reports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.model import Payload
from gateway.readers.hidpos import (
    LAYOUT_A,
    LAYOUT_B,
    LAYOUT_C,
    HidPosDecoder,
    Layout,
    parse_descriptor,
)

HEAD = (
    "05 8C 09 02 A1 01 85 02 09 12 A1 02 15 00 26 FF 00 75 08 95 01 05 01 09 3B 81 02 "
    "95 03 05 8C 09 FB 09 FC 09 FD 81 02 95 38 09 FE 82 02 01 "
)
VENDOR = "95 02 06 66 FF 09 04 81 02 "
TAIL = "05 8C 25 01 75 01 95 01 09 FF 81 02 75 07 81 03 C0 C0"
WITH_VENDOR = bytes.fromhex(HEAD + VENDOR + TAIL)
WITHOUT_VENDOR = bytes.fromhex(HEAD + TAIL)
# Another maker's: flag first, then the data, then the count in the last byte; a second report beside it.
OTHER_ORDER = bytes.fromhex(
    "05 8C 09 02 A1 01 85 07 09 12 A1 02 15 00 25 01 75 01 95 01 09 FF 81 02 75 07 81 03 "
    "26 FF 00 75 08 95 1E 09 FE 82 02 01 95 01 0B 3B 00 01 00 81 02 C0 "
    "85 09 75 08 95 04 09 20 81 02 C0"
)
UNNUMBERED = bytes.fromhex("05 8C 09 02 A1 01 75 08 95 1F 09 FE 81 02 95 01 09 FF 81 02 C0")


def report(layout: Layout, data: bytes, aim: bytes = b"]Q1", more: bool = False) -> bytes:
    """One report as a scanner of that layout sends it."""
    out = bytearray(layout.size)
    out[0] = layout.report_id
    if layout.count is not None:
        out[layout.count] = len(data)
    if layout.aim is not None:
        for place, letter in zip(layout.aim, aim, strict=True):
            out[place] = letter
    out[layout.data : layout.data + len(data)] = data
    if layout.continued is not None and more:
        out[layout.continued[0]] |= layout.continued[1]
    return bytes(out)


def reports(layout: Layout, code: bytes, aim: bytes = b"]Q1") -> bytes:
    """A code in as many reports as it takes."""
    size = layout.capacity
    parts = [code[at : at + size] for at in range(0, len(code), size)]
    return b"".join(report(layout, part, aim, more=part is not parts[-1]) for part in parts)


def parsed(descriptor: bytes) -> Layout:
    layout = parse_descriptor(descriptor)
    assert layout is not None
    return layout


def code_of(length: int) -> bytes:
    return bytes(0x41 + at % 26 for at in range(length))


LAYOUTS = {
    "A": LAYOUT_A,
    "B": LAYOUT_B,
    "C": LAYOUT_C,
    "descriptor": parsed(WITH_VENDOR),
    "62 bytes": parsed(WITHOUT_VENDOR),
    "other order": parsed(OTHER_ORDER),
}


def test_descriptor_gives_the_places() -> None:
    """The usual descriptor gives layout A; without vendor bytes the flag stands at byte 61."""
    assert parsed(WITH_VENDOR) == LAYOUT_A
    short = parsed(WITHOUT_VENDOR)
    assert (short.size, short.continued, short.data, short.capacity) == (62, (61, 1), 5, 56)


def test_descriptor_of_another_maker() -> None:
    """Order, sizes and report ids are the maker's; other reports of the device are known by their size."""
    layout = parsed(OTHER_ORDER)
    assert layout == Layout(
        report_id=7, size=33, count=32, aim=None, data=2, capacity=30, continued=(1, 1), sizes={7: 33, 9: 5}
    )
    decoder = HidPosDecoder(layout)
    other = bytes((9, 1, 2, 3, 4))
    stream = other + reports(layout, code_of(70)) + other + reports(layout, b"AB")
    assert decoder.feed(stream) == [Payload(code_of(70)), Payload(b"AB")]
    assert decoder.ignored == 2


def test_unnumbered_reports_without_a_count() -> None:
    """Without report ids nothing precedes the data; without a count it ends before its trailing zeros."""
    layout = parsed(UNNUMBERED)
    assert (layout.report_id, layout.size, layout.data, layout.continued) == (0, 32, 0, (31, 1))
    assert HidPosDecoder(layout).report(b"8K2M" + bytes(28)) == [Payload(b"8K2M")]


@pytest.mark.parametrize(
    "descriptor",
    [
        b"",
        bytes.fromhex("06 00 FF 09 01 A1 01 15 00 26 FF 00 75 08 95 08 09 00 B2 02 01 C0"),  # a relay board
        bytes.fromhex("05 8C 09 02 A1 01 75 04 95 38 09 FE 81 02 C0"),  # data of half bytes
        bytes.fromhex("05 8C 75 08 97 FF FF FF FF 09 FE 81 02"),  # four thousand million of them
    ],
)
def test_descriptors_that_do_not_say(descriptor: bytes) -> None:
    """Where the descriptor has no usable data field there is no layout."""
    assert parse_descriptor(descriptor) is None


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("length", [1, 8, 55, 56, 57, 112, 120, 200, 500, 513])
def test_codes_of_every_length(layout: Layout, length: int) -> None:
    """Codes are joined from as many reports as they take, and given with their AIM identifier apart."""
    code = code_of(length)
    decoder = HidPosDecoder(layout)
    expected = Payload(code, "]Q1" if layout.aim else None)
    assert decoder.feed(reports(layout, code)) == [expected]
    assert not decoder.pending
    assert decoder.dropped == decoder.ignored == 0


@pytest.mark.parametrize(("name", "aim"), [("A", "]Q1"), ("B", None), ("C", "]Q1")])
@pytest.mark.parametrize("length", [8, 120])
def test_known_layouts_without_a_descriptor(name: str, aim: str | None, length: int) -> None:
    """Where the descriptor does not say, each of the three known layouts is told by its AIM identifier."""
    stream = reports(LAYOUTS[name], code_of(length))
    assert HidPosDecoder(None).feed(stream) == [Payload(code_of(length), aim)]


def test_a_code_of_120_bytes_takes_three_reports() -> None:
    """Nothing is given before the last of the reports."""
    decoder = HidPosDecoder(LAYOUT_A)
    stream = reports(LAYOUT_A, code_of(120))
    assert len(stream) == 3 * 64
    assert decoder.report(stream[:64]) == decoder.report(stream[64:128]) == []
    assert decoder.pending
    assert decoder.report(stream[128:]) == [Payload(code_of(120), "]Q1")]


@pytest.mark.parametrize("suffix", [b"\r", b"\n", b"\r\n"])
def test_a_suffix_is_taken_off(suffix: bytes) -> None:
    """A suffix set up in the scanner is no part of the code, also where it has a report of its own."""
    decoder = HidPosDecoder(LAYOUT_A)
    assert decoder.feed(reports(LAYOUT_A, b"8K2M" + suffix)) == [Payload(b"8K2M", "]Q1")]
    assert decoder.feed(reports(LAYOUT_A, code_of(56) + suffix)) == [Payload(code_of(56), "]Q1")]


def test_an_empty_last_report_ends_a_code() -> None:
    """A code of exactly one report may be followed by an empty one; an empty report alone is no scan."""
    decoder = HidPosDecoder(LAYOUT_A)
    stream = report(LAYOUT_A, code_of(56), more=True) + report(LAYOUT_A, b"")
    assert decoder.feed(stream) == [Payload(code_of(56), "]Q1")]
    assert decoder.feed(report(LAYOUT_A, b"")) == []


@pytest.mark.parametrize("code", [b"a\x00\x1db", b"\xff\xfe", b"]Q1x"])
def test_strange_codes_are_delivered_as_they_are(code: bytes) -> None:
    """Control characters and what is not UTF-8 are for others to judge."""
    assert HidPosDecoder(LAYOUT_A).feed(reports(LAYOUT_A, code)) == [Payload(code, "]Q1")]


def test_answers_to_commands_are_no_scans() -> None:
    """Text with ]X0 that ]Z6 follows, and ]Z6 itself, are the scanner's talk; the next code is a scan."""
    decoder = HidPosDecoder(LAYOUT_A)
    answer = reports(LAYOUT_A, b"Name: scanner\r\n" * 9, b"]X0")
    status = report(LAYOUT_A, b"REVINF\x06.", b"]Z6")
    assert decoder.feed(answer + status + status) == []
    assert decoder.feed(answer[:64] + status) == []
    assert decoder.flush() == []
    assert decoder.feed(reports(LAYOUT_A, b"8K2M")) == [Payload(b"8K2M", "]Q1")]
    assert decoder.dropped == 0
    assert decoder.ignored == 3


def test_a_rare_symbology_is_a_scan() -> None:
    """A code with ]X0 that nothing follows, or another code does, is a scan after all."""
    decoder = HidPosDecoder(LAYOUT_A)
    assert decoder.feed(reports(LAYOUT_A, b"8K2M", b"]X0")) == []
    assert decoder.pending
    assert decoder.flush() == [Payload(b"8K2M", "]X0")]
    stream = reports(LAYOUT_A, b"8K2M", b"]X0") + reports(LAYOUT_A, b"PX4T")
    assert decoder.feed(stream) == [Payload(b"8K2M", "]X0"), Payload(b"PX4T", "]Q1")]


def test_other_reports_are_ignored() -> None:
    """Wrong report ids and impossible counts give nothing, are counted, and the next code is right."""
    decoder = HidPosDecoder(LAYOUT_A)
    assert decoder.report(bytes((3, 1, 2))) == []
    assert decoder.report(b"") == []
    assert decoder.report(b"\x02\xff" + b"x" * 62) == []
    assert decoder.ignored == 3
    assert decoder.report(reports(LAYOUT_A, b"8K2M")) == [Payload(b"8K2M", "]Q1")]
    assert decoder.dropped == 0


def test_a_short_report_is_filled_with_zeros() -> None:
    """A device may leave out what follows the data."""
    assert HidPosDecoder(LAYOUT_A).report(b"\x02\x04]Q18K2M") == [Payload(b"8K2M", "]Q1")]


def test_a_torn_code_is_dropped() -> None:
    """A code whose tail is lost is dropped after silence, or at a code of another symbology."""
    decoder = HidPosDecoder(LAYOUT_A)
    decoder.feed(reports(LAYOUT_A, code_of(120))[:64])
    assert decoder.flush() == []
    assert decoder.feed(reports(LAYOUT_A, b"8K2M")) == [Payload(b"8K2M", "]Q1")]
    assert decoder.dropped == 1
    decoder.feed(reports(LAYOUT_A, code_of(120))[:128])
    assert decoder.feed(reports(LAYOUT_A, b"PX4T", b"]C0")) == [Payload(b"PX4T", "]C0")]
    assert decoder.dropped == 2
    decoder.feed(reports(LAYOUT_A, b"8K2M")[:30])
    decoder.flush()
    assert decoder.dropped == 3
    assert decoder.feed(reports(LAYOUT_A, b"8K2M")) == [Payload(b"8K2M", "]Q1")]


def test_too_long_a_code_is_dropped() -> None:
    """Beyond the bound the code is dropped up to its last report, counted once, and the next is right."""
    decoder = HidPosDecoder(LAYOUT_A)
    assert decoder.feed(reports(LAYOUT_A, code_of(5000))) == []
    assert decoder.dropped == 1
    assert decoder.feed(reports(LAYOUT_A, b"8K2M")) == [Payload(b"8K2M", "]Q1")]


layouts = st.sampled_from([*LAYOUTS.values(), None])
steps = st.lists(
    st.tuples(
        st.sampled_from([b"]Q1", b"]X0", b"]Z6", b"\0\0\0"]),
        st.binary(max_size=130),
        st.sampled_from([0, 0, 0, 3]),
    ),
    max_size=5,
)


def stream_of(layout: Layout | None, steps: list[tuple[bytes, bytes, int]]) -> bytes:
    layout = layout or LAYOUT_C
    stream = b""
    for aim, code, wrong_id in steps:
        part = bytearray(reports(layout, code, aim))
        if part and wrong_id:
            part[0] = wrong_id
        stream += part
    return stream


@given(layouts, steps, st.lists(st.integers(0, 1000), max_size=20))
def test_any_split_gives_the_same(
    layout: Layout | None, steps: list[tuple[bytes, bytes, int]], cuts: list[int]
) -> None:
    """However a stream of reports is cut, the scans and what is counted are the same."""
    stream = stream_of(layout, steps)
    whole, parts = HidPosDecoder(layout, max_bytes=120), HidPosDecoder(layout, max_bytes=120)
    expected = whole.feed(stream) + whole.flush()
    got = []
    at = 0
    for cut in [*sorted(cuts), len(stream)]:
        got += parts.feed(stream[at : max(at, cut)])
        at = max(at, cut)
    assert got + parts.flush() == expected
    assert (parts.dropped, parts.ignored) == (whole.dropped, whole.ignored)


@given(layouts, st.lists(st.tuples(st.booleans(), st.binary(max_size=200)), max_size=20))
def test_garbage_does_no_harm(layout: Layout | None, chunks: list[tuple[bool, bytes]]) -> None:
    """Arbitrary reports and streams raise nothing, and after silence the next code is right."""
    decoder = HidPosDecoder(layout)
    for whole, chunk in chunks:
        if whole:
            decoder.report(b"\x02" + chunk[:63])
        else:
            decoder.feed(chunk)
    decoder.flush()
    (payload,) = decoder.feed(reports(layout or LAYOUT_A, code_of(120)))
    assert payload.data == code_of(120)


@given(st.binary(max_size=300))
def test_any_descriptor(descriptor: bytes) -> None:
    """Arbitrary bytes as a descriptor raise nothing; a layout that comes of them decodes without raising."""
    layout = parse_descriptor(bytes.fromhex("05 8C 75 08 95 10 09 FE") + descriptor + b"\x81\x02")
    if layout is not None:
        assert layout.data + layout.capacity <= layout.size <= 4096
        decoder = HidPosDecoder(layout)
        decoder.report(bytes((layout.report_id,)) + b"x" * (layout.size - 1))
        decoder.feed(b"y" * 100)
        decoder.flush()
