"""A Code 128 barcode (ISO/IEC 15417) of printable ASCII, as SVG for paper and as blocks for a terminal."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final

# Widths of bar, space, bar, space, bar, space of the symbols 0 to 105; each is 11 modules wide.
_SYMBOLS: Final = tuple(
    re.findall(
        r"\d{6}",
        "212222 222122 222221 121223 121322 131222 122213 122312 132212 221213 221312 231212 112232 122132 "
        "122231 113222 123122 123221 223211 221132 221231 213212 223112 312131 311222 321122 321221 312212 "
        "322112 322211 212123 212321 232121 111323 131123 131321 112313 132113 132311 211313 231113 231311 "
        "112133 112331 132131 113123 113321 133121 313121 211331 231131 213113 213311 213131 311123 311321 "
        "331121 312113 312311 332111 314111 221411 431111 111224 111422 121124 121421 141122 141221 112214 "
        "112412 122114 122411 142112 142211 241211 221114 413111 241112 134111 111242 121142 121241 114212 "
        "124112 124211 411212 421112 421211 212141 214121 412121 111143 111341 131141 114113 114311 411113 "
        "411311 113141 114131 311141 411131 211412 211214 211232",
    )
)
_START_B: Final = 104
_STOP: Final = "2331112"
QUIET: Final = 10
"""Modules of white that a reader needs on both sides."""


def symbols(text: str) -> list[int]:
    """Start, characters of code set B and check symbol. Raises ValueError for what set B has not."""
    values = [ord(char) - 32 for char in text]
    if not values or not all(0 <= value <= 94 for value in values):
        raise ValueError("a barcode of code set B holds printable ASCII")
    check = _START_B + sum(place * value for place, value in enumerate(values, 1))
    return [_START_B, *values, check % 103]


def modules(text: str) -> str:
    """The barcode with its quiet zones, one letter a module: 1 is black."""
    widths = "".join(_SYMBOLS[symbol] for symbol in symbols(text)) + _STOP
    bars = "".join("10"[place % 2] * int(width) for place, width in enumerate(widths))
    return "0" * QUIET + bars + "0" * QUIET


def svg(text: str, title: str) -> str:
    """A drawing that prints 0.5 mm wide modules, with the text and a title below."""
    row = modules(text)
    edges = [place for place, (a, b) in enumerate(pairwise("0" + row + "0")) if a != b]
    bars = "".join(
        f"M{start} 4h{end - start}v40h-{end - start}z"
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    )
    width = len(row)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width / 2}mm" height="30mm" '
        f'viewBox="0 0 {width} 60">\n'
        f'<rect width="{width}" height="60" fill="#fff"/>\n<path d="{bars}"/>\n'
        f'<text x="{width / 2}" y="52" font-family="monospace" font-size="7" text-anchor="middle">'
        f"{_escaped(text)}</text>\n"
        f'<text x="{width / 2}" y="58" font-family="sans-serif" font-size="4" text-anchor="middle">'
        f"{_escaped(title)}</text>\n</svg>\n"
    )


def blocks(text: str, rows: int = 8) -> str:
    """For a terminal, black on white whatever its colours are; two modules a column."""
    row = modules(text)
    row += "0" * (len(row) % 2)
    halves = {"00": " ", "01": "▐", "10": "▌", "11": "█"}
    line = "".join(halves[row[place : place + 2]] for place in range(0, len(row), 2))
    return f"\x1b[30;107m{line}\x1b[0m\n" * rows


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
