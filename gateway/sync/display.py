"""The page beside the scanner: what a visitor is told, and no more than everybody may see who walks past."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gateway import __version__
from gateway.messages import LANGUAGES, Kind, language_of, spoken, standing
from gateway.sync import words
from gateway.sync.streams import Stream, Streams, event
from gateway.sync.watching import Verdict, Watch

WELCOME_MS, GUEST_MS, REFUSED_MS = 5000, 10_000, 8000
"""How long a verdict is shown; with the hint that a guest may follow; a refusal."""
_FIRST = 2.0
"""Seconds for which a page that is opened waits to hear how the gate is."""


@dataclass(eq=False)
class _Screen:
    """One browser that shows a lane."""

    lane: str
    point: str | None
    """None: all points of the lane."""
    languages: Sequence[str]
    """Empty: the venue's, and English."""
    stream: Stream = field(default_factory=Stream)
    shown: dict[str, Any] | None = None
    """The standing that it was told last."""


class Display:
    """Every screen of every lane."""

    def __init__(
        self,
        watch: Watch,
        streams: Streams,
        lanes: Sequence[str],
        own: Mapping[str, Mapping[str, str]],
        *,
        shuts: bool,
    ) -> None:
        """``own``: the venue's texts (``[messages.xx]``). ``shuts``: a lane admits nobody while the ledger
        cannot be written (``on_ledger_failure``)."""
        self._watch, self._streams, self._own, self._shuts = watch, streams, own, shuts
        self._screens: dict[str, set[_Screen]] = {lane: set() for lane in lanes}
        self._last: dict[str, tuple[float, Verdict]] = {}
        """By lane, until when its last verdict is shown."""
        self._language: str | None = None
        """The venue's."""
        watch.on_verdict.append(self._verdict)
        watch.on_change.append(self._change)

    def knows(self, lane: str) -> bool:
        return lane in self._screens

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The stream of one screen."""
        lane = request.match_info["lane"]
        asked = [language_of(tag) for tag in request.query.get("languages", "").split(",")[: len(LANGUAGES)]]
        screen = _Screen(lane, request.query.get("point"), [tag for tag in dict.fromkeys(asked) if tag])
        with self._watch.look():
            await self._watch.known(_FIRST)
            self._screens[lane].add(screen)
            try:
                screen.shown = self._standing(screen)
                first = [event(screen.shown)]
                until, verdict = self._last.get(lane, (0.0, {}))
                left = until - asyncio.get_running_loop().time()
                if left > 0 and screen.point in (None, verdict["point"]):
                    first.append(event(shown(verdict) | {"for_ms": round(left * 1000)}))
                return await self._streams.serve(request, screen.stream, first)
            finally:
                self._screens[lane].discard(screen)

    def _verdict(self, verdict: Verdict) -> None:
        screens = self._screens.get(verdict["lane"])
        if not screens or "free" in verdict["flags"]:  # a free lane says that it is free
            return
        told = shown(verdict)
        now = asyncio.get_running_loop().time()
        self._last[verdict["lane"]] = (now + told["for_ms"] / 1000, verdict)
        data = event(told)
        for screen in screens:
            if screen.point in (None, verdict["point"]):
                screen.stream.put(data)

    def _change(self) -> None:
        for screens in self._screens.values():
            for screen in screens:
                standing = self._standing(screen)
                if standing != screen.shown:
                    screen.shown = standing
                    screen.stream.put(event(standing))

    def _standing(self, screen: _Screen) -> dict[str, Any]:
        """What is shown while nobody is there."""
        status = self._watch.status
        if status is not None:
            self._language = spoken([status.get("venue", {}).get("language", "en")])
        languages = screen.languages or LANGUAGES
        if not screen.languages and self._language is not None:
            languages = tuple(dict.fromkeys((self._language, "en")))
        kind = lane_kind(status, screen.lane, shuts=self._shuts)
        texts = [
            {
                "language": language,
                "heading": words.heading(kind, language),
                "text": standing(kind, language, self._own),
            }
            for language in languages
        ]
        return {"kind": kind, "lane": screen.lane, "texts": texts, "version": __version__}


def lane_kind(status: Mapping[str, Any] | None, lane: str, *, shuts: bool) -> Kind:
    """How a lane stands, for a visitor; ``status`` as the gate answers, None: it does not."""
    here = None
    if status is not None:
        here = next((each for each in status["lanes"] if each["lane"] == lane), None)
    if status is None or here is None or here["fault"] is not None:
        return "out"
    if here["state"] == "free":
        return "free"
    readers = [each["up"] for each in status["readers"] if each["point"] in here["points"]]
    stale = status["snapshot"] is not None and status["snapshot"]["stale"]
    if stale or (readers and not any(readers)) or (shuts and status["ledger"]["fault"] is not None):
        return "out"
    return "closed" if here["state"] == "closed" else "idle"


def shown(verdict: Verdict) -> dict[str, Any]:
    """What of a verdict everybody may see. Nothing that says who it is."""
    # A gate that has not been started since an update tells less.
    language, granted = verdict.get("language", "en"), verdict["verdict"] == "granted"
    told = {"language": language, "text": verdict["message"], "name": None, "hint": ""}
    if not granted:
        return {"kind": "refused", **told, "for_ms": REFUSED_MS}
    hint = words.guests(verdict.get("guests", 0), language)
    told |= {"name": verdict.get("name"), "hint": hint}
    return {"kind": "welcome", **told, "for_ms": GUEST_MS if hint else WELCOME_MS}
