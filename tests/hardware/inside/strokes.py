"""What a scanner presses that plays keyboard, for each character of the layout that it is set to.

Written down from the keyboards themselves, row by row, without a look at the gateway's tables.
Key numbers: HID Usage Tables 1.5, page 7.
"""

SHIFT, ALT_GR = 0x02, 0x40
ENTER, SPACE = 0x28, 0x2C

# The four rows of keys, left to right: from below Esc to the left of Backspace, and so on down. ISO keyboards
# have a key left of Z, and the one at the end of the third row has another number there.
_ROWS = (
    "35 1e 1f 20 21 22 23 24 25 26 27 2d 2e",
    "14 1a 08 15 17 1c 18 0c 12 13 2f 30",
    "04 16 07 09 0a 0b 0d 0e 0f 33 34",
    "1d 1b 06 19 05 11 10 36 37 38",
)
_US = [*_ROWS[:2], _ROWS[2] + " 31", _ROWS[3]]
_ISO = [*_ROWS[:2], _ROWS[2] + " 32", "64 " + _ROWS[3]]

# What is printed on each key, and on it with Shift; then what AltGr gives. A blank is a dead key, which types
# nothing by itself.
_PRINTED = {
    "us": (
        _US,
        ("`1234567890-=", "qwertyuiop[]", "asdfghjkl;'\\", "zxcvbnm,./"),
        ("~!@#$%^&*()_+", "QWERTYUIOP{}", 'ASDFGHJKL:"|', "ZXCVBNM<>?"),
        {},
    ),
    "de": (
        _ISO,
        (" 1234567890ß ", "qwertzuiopü+", "asdfghjklöä#", "<yxcvbnm,.-"),
        ('°!"§$%&/()=? ', "QWERTZUIOPÜ*", "ASDFGHJKLÖÄ'", ">YXCVBNM;:_"),
        {
            **{0x1F: "²", 0x20: "³", 0x24: "{", 0x25: "[", 0x26: "]", 0x27: "}", 0x2D: "\\"},
            **{0x14: "@", 0x08: "€", 0x30: "~", 0x64: "|", 0x10: "µ"},
        },
    ),
    # Without ~ and ` on the keys of 2 and 7, which are dead keys to some computers and none to others.
    "fr": (
        _ISO,
        ("²&é\"'(-è_çà)=", "azertyuiop $", "qsdfghjklmù*", "<wxcvbn,;:!"),
        (" 1234567890°+", "AZERTYUIOP £", "QSDFGHJKLM%µ", ">WXCVBN?./§"),
        {
            **{0x20: "#", 0x21: "{", 0x22: "[", 0x23: "|", 0x25: "\\", 0x26: "^", 0x27: "@"},
            **{0x2D: "]", 0x2E: "}", 0x08: "€", 0x30: "¤"},
        },
    ),
}

# A dead key and the space bar type the accent: the keys, by what they give.
_ACCENTS = {
    "us": {},
    "de": {"^": (0, 0x35), "`": (SHIFT, 0x2E)},
    "fr": {"¨": (SHIFT, 0x2F)},
}


def strokes(layout: str) -> dict[str, list[tuple[int, int]]]:
    """The keys of each character that a scanner set to this layout can type: modifiers and key, in order."""
    rows, plain, shifted, alt_gr = _PRINTED[layout]
    found = {" ": [(0, SPACE)]}
    for modifiers, printed in ((0, plain), (SHIFT, shifted)):
        for row, faces in zip(rows, printed, strict=True):
            for key, face in zip(bytes.fromhex(row), faces, strict=True):
                found.setdefault(face, [(modifiers, key)])
    for key, face in alt_gr.items():
        found.setdefault(face, [(ALT_GR, key)])
    for face, stroke in _ACCENTS[layout].items():
        found.setdefault(face, [stroke, (0, SPACE)])
    return found


def typable(layout: str) -> str:
    """Every character of a layout."""
    return "".join(strokes(layout))
