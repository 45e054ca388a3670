"""What may stand in a bundle: the program's own words, the names of the configuration, short numbers, times.

Everything else in free text becomes ``[…]``, because a code, a name or a token can look like anything. Ids of
cards and people, where they stand in a field of their own, become pseudonyms under a key that is drawn for
one bundle and kept nowhere: one can see that two lines are about the same card, and not which card that is.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

GONE: Final = "[…]"


def _set(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\S+", text))


_LONGEST_NUMBER: Final = 4
"""Digits. Longer ones may be codes or the numbers of members."""
_TOKEN = re.compile(r"\w+", re.UNICODE)
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?")
_PERSONS: Final = frozenset(("credential", "holder", "entitlement", "id", "person"))
"""Fields of a log line that name a card or somebody."""
_PLAIN: Final = _set(
    "timestamp event level part reason remedy fault field kind file result state verdict detail "
    "point lane lanes reader input gateway venue url central listen address version of do what "
    "message status on_ledger_failure until active synchronised"
)
"""Fields whose text is kept as far as its words are known."""
_COUNTED: Final = _set(
    "count seq generation credentials readers lanes after again_in_s seconds not_logged "
    "log_lines_dropped status active synchronised set_aside"
)
"""Fields whose numbers are kept."""
_MANAGER: Final = _set(
    "Starting Started Stopping Stopped Reloading systemd Main Scheduled Failed Consumed "
    "Deactivated Killing Watchdog Triggered Unit Start Job Job's Found Succeeded Control "
    "process exited code status result with restart job counter at is successfully CPU time "
    "timeout limit signal killed dumped ABRT KILL TERM EXEC SIGABRT SIGKILL SIGTERM service "
    "socket oneshot entry scan gateway dependency request repeated too quickly skipped "
    "condition unmet state operation timed out left over processes core dump memory peak swap"
)
"""What systemd says of units."""


@cache
def vocabulary() -> frozenset[str]:
    """The words of the program's own source; those of the demo's visitors are none of them."""
    words: set[str] = set(_MANAGER)
    words.update(name for name in dir(builtins) if name[0].isupper())
    root = Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in ("demo", "central"):
            words.update(_TOKEN.findall(path.read_text(encoding="utf-8")))
    # What has digits is an example of a code or an address, or a constant; nobody misses it.
    return frozenset(word for word in words if not any(char.isdigit() for char in word))


class Scrub:
    """The rules of one bundle. ``names``: of the configuration; ``secrets``: known ones, removed everywhere.

    ``key`` is random and belongs to this bundle alone."""

    def __init__(self, names: Iterable[str], secrets: Iterable[str], key: bytes) -> None:
        self._names = {word for name in names for word in _TOKEN.findall(name)}
        self._secrets = sorted((s for s in secrets if len(s) >= 4), key=len, reverse=True)
        self._key = key

    def words(self, text: str) -> str:
        """Free text: what is not known to be harmless is gone."""
        kept, at = [], 0
        for time in _TIME.finditer(text):
            kept += [self._tokens(text[at : time.start()]), time[0]]
            at = time.end()
        return "".join([*kept, self._tokens(text[at:])])

    def _tokens(self, text: str) -> str:
        return _TOKEN.sub(lambda found: found[0] if self._harmless(found[0]) else GONE, text)

    def _harmless(self, word: str) -> bool:
        if word.isdecimal():
            return len(word) <= _LONGEST_NUMBER
        if word in self._names:
            return True
        known = vocabulary()
        return word in known or all(part in known or part == "" for part in word.split("_"))

    def pseudonym(self, value: object) -> str | None:
        """The same for the same value in this bundle, and for nobody to reverse."""
        if value is None:
            return None
        return "p-" + hashlib.blake2b(str(value).encode(), key=self._key, digest_size=6).hexdigest()

    def log_line(self, text: str) -> dict[str, Any]:
        """A line of the journal: the gate's own by its fields, anything else as free text."""
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            return {"text": self.words(text)}
        return self._fields(line)

    def journal_entry(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """An entry of the journal with the fields that ``log.Journal`` gives it, without the message that
        says them again; {} where it is no such entry."""
        told = {name[8:].lower(): value for name, value in entry.items() if name.startswith("GATEWAY_")}
        for name in told.keys() & _COUNTED:
            with contextlib.suppress(ValueError, TypeError):
                told[name] = json.loads(told[name])
        return self._fields(told)

    def _fields(self, line: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for name, value in line.items():
            if name in _PERSONS:
                kept[name] = self.pseudonym(value)
            elif name == "exception" and isinstance(value, str):
                kept[name] = self.traceback(value)
            elif name in _COUNTED and isinstance(value, int | float):
                kept[name] = value
            elif name in _PLAIN and (value is None or isinstance(value, bool | str | list)):
                kept[name] = self.each(value)
        # What was left out is not named: a name of a field may say something too.
        left_out = len(line) - len(kept)
        return kept | ({"fields_left_out": left_out} if left_out else {})

    def traceback(self, text: str) -> list[str]:
        """Where it happened, and of which type it was; neither source nor values."""
        lines = []
        for line in text.splitlines():
            if place := re.match(
                r'\s*File "(?:.*/)?((?:gateway/)?[\w/]+\.py)", line (\d+), in ([\w<>]+)', line
            ):
                lines.append(f"{place[1].rpartition('gateway/')[2]}:{place[2]} {self._tokens(place[3])}")
            elif error := re.match(r"([A-Za-z_.]+(?:Error|Exception|Timeout|Interrupt))(?:: (.*))?$", line):
                lines.append(f"{self._tokens(error[1])}: {self.words(error[2] or '')}")
        return lines

    def sweep(self, text: str) -> str:
        """The last look at a whole member: no known secret is in it, whatever happened before."""
        for secret in self._secrets:
            text = text.replace(secret, GONE)
        return text

    def each(self, value: Any) -> Any:
        """The texts inside a structure, each through ``words``; its keys are the program's own."""
        if isinstance(value, dict):
            return {key: self.each(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.each(inner) for inner in value]
        if value is None or isinstance(value, int | float | bool):
            return value
        return self.words(str(value))
