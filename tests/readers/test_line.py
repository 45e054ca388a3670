"""Lines and frames of serial scanners."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Framing
from gateway.model import Payload
from gateway.readers.line import MAX_PAYLOAD_BYTES, LineDecoder

FRAMINGS: tuple[Framing, ...] = ("suffix", "stx_etx", "idle")
framings = st.sampled_from(FRAMINGS)
# Bytes in which everything that means something is frequent.
streams = st.lists(
    st.sampled_from([b"\r", b"\n", b"\t", b"\x02", b"\x03", b"]Q1", b"A", b"b7", b"\xff"])
).map(b"".join)


def codes(payloads: list[Payload]) -> list[bytes]:
    return [payload.data for payload in payloads]


@pytest.mark.parametrize("suffix", [b"\r", b"\n", b"\r\n", b"\t"])
def test_each_suffix_ends_a_code(suffix: bytes) -> None:
    """CR, LF, CRLF and TAB each end one code."""
    decoder = LineDecoder("suffix")
    assert codes(decoder.feed(b"8K2M" + suffix + b"PX4T" + suffix)) == [b"8K2M", b"PX4T"]
    assert not decoder.pending


def test_crlf_cut_in_two_is_one_end() -> None:
    """The LF of a CRLF that comes in the next read is no scan of its own."""
    decoder = LineDecoder("suffix")
    assert codes(decoder.feed(b"8K2M\r")) == [b"8K2M"]
    assert codes(decoder.feed(b"\nPX4T\r\n")) == [b"PX4T"]


def test_a_lone_suffix_is_no_scan() -> None:
    """A suffix with nothing before it gives nothing."""
    assert LineDecoder("suffix").feed(b"\r\n\r\n\t\n") == []


def test_frames() -> None:
    """STX ... ETX is a code, with CR and LF in it; what stands between frames is not."""
    decoder = LineDecoder("stx_etx")
    assert codes(decoder.feed(b"noise\x0212\r\n34\x03\r\n\x03\x02AB\x03")) == [b"12\r\n34", b"AB"]
    assert decoder.dropped == 0


def test_an_empty_frame_is_a_payload() -> None:
    """An empty frame is handed on, to be judged malformed."""
    assert codes(LineDecoder("stx_etx").feed(b"\x02\x03")) == [b""]


def test_a_new_stx_begins_anew() -> None:
    """A frame that never ended is dropped at the next STX, and counted."""
    decoder = LineDecoder("stx_etx")
    assert codes(decoder.feed(b"\x02torn\x02whole\x03")) == [b"whole"]
    assert decoder.dropped == 1


def test_silence_ends_a_code() -> None:
    """With framing idle the code is what came before the silence, whatever bytes it has."""
    decoder = LineDecoder("idle")
    assert decoder.feed(b"\x02AB") == []
    assert decoder.pending
    assert decoder.feed(b"\r\x03") == []
    assert codes(decoder.flush()) == [b"\x02AB\r\x03"]
    assert decoder.flush() == []
    assert decoder.dropped == 0


@pytest.mark.parametrize(("framing", "start", "end"), [("suffix", b"", b"\r"), ("stx_etx", b"\x02", b"\x03")])
def test_silence_tears_a_code(framing: Framing, start: bytes, end: bytes) -> None:
    """Half a code is dropped and counted after silence, and the next one is read."""
    decoder = LineDecoder(framing)
    decoder.feed(start + b"half")
    assert decoder.pending
    assert decoder.flush() == []
    assert decoder.dropped == 1
    assert not decoder.pending
    assert codes(decoder.feed(start + b"whole" + end)) == [b"whole"]


@pytest.mark.parametrize(
    ("data", "aim"),
    [
        (b"]Q18K2M", "]Q1"),
        (b"]d2X", "]d2"),
        (b"]8K2", None),
        (b"]Q", None),
        (b"8]Q1", None),
        (b"]QQ9", "]QQ"),
    ],
)
def test_aim_identifier(data: bytes, aim: str | None) -> None:
    """An AIM identifier in front is reported; it is taken off only where the venue says so."""
    assert LineDecoder("suffix").feed(data + b"\r") == [Payload(data, aim)]
    stripped = data[3:] if aim else data
    assert LineDecoder("suffix", strip_aim=True).feed(data + b"\r") == [Payload(stripped, aim)]


@pytest.mark.parametrize(
    "code", [b"x" * 500, b"x" * 513, b"x" * MAX_PAYLOAD_BYTES, b"a\x00\x1db", b"\xff\xfe"]
)
@pytest.mark.parametrize(
    ("framing", "start", "end"), [("suffix", b"", b"\r"), ("stx_etx", b"\x02", b"\x03"), ("idle", b"", b"")]
)
def test_strange_codes_are_delivered_as_they_are(
    framing: Framing, start: bytes, end: bytes, code: bytes
) -> None:
    """Long codes, control characters and what is not UTF-8 are for others to judge."""
    decoder = LineDecoder(framing)
    assert codes(decoder.feed(start + code + end) + decoder.flush()) == [code]


@pytest.mark.parametrize(
    ("framing", "start", "end"), [("suffix", b"", b"\r"), ("stx_etx", b"\x02", b"\x03"), ("idle", b"", b"")]
)
def test_what_is_too_long_is_dropped_up_to_the_next_boundary(
    framing: Framing, start: bytes, end: bytes
) -> None:
    """Beyond the bound nothing is kept, one drop is counted, and the next code is read."""
    decoder = LineDecoder(framing)
    out = decoder.feed(start)
    for _ in range(100):
        out += decoder.feed(b"x" * 100)
    out += decoder.feed(end) + decoder.flush()
    assert out == []
    assert decoder.dropped == 1
    assert codes(decoder.feed(start + b"next" + end) + decoder.flush()) == [b"next"]


@given(framings, streams, st.lists(st.integers(0, 60)))
def test_any_split_gives_the_same(framing: Framing, stream: bytes, cuts: list[int]) -> None:
    """However a stream is cut, the scans and the drops are the same, also when codes are too long."""
    whole, parts = LineDecoder(framing, max_bytes=5), LineDecoder(framing, max_bytes=5)
    expected = whole.feed(stream) + whole.flush()
    got = []
    at = 0
    for cut in [*sorted(cuts), len(stream)]:
        got += parts.feed(stream[at : max(at, cut)])
        at = max(at, cut)
    assert got + parts.flush() == expected
    assert parts.dropped == whole.dropped


@given(framings, st.lists(st.one_of(st.binary(), streams)))
def test_garbage_does_no_harm(framing: Framing, chunks: list[bytes]) -> None:
    """Arbitrary bytes raise nothing, and after silence the next code is right."""
    decoder = LineDecoder(framing)
    for chunk in chunks:
        decoder.feed(chunk)
    decoder.flush()
    assert codes(decoder.feed(b"\x028K2M\x03\r") + decoder.flush())[:1] in (
        [b"8K2M"],
        [b"\x028K2M\x03"],
        [b"\x028K2M\x03\r"],
    )
