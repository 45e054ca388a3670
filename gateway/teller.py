"""What is said of a verdict to those who listen: the display's feed and the log. Never on the way to the
pulse: words are found a little later, and no faster than somebody can use them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from structlog.typing import FilteringBoundLogger

from gateway.gate import Gate
from gateway.messages import pick, spoken
from gateway.model import Decision, Scan, Verdict
from gateway.world import PointAt

AT_ONCE = 64
"""Verdicts put into words in one turn of the loop; a longer burst is told in several."""
LATER = 0.02
"""Seconds from a verdict to its words: the commit and the pulse come first. At once, words would hold up the
ledger's thread, which needs the interpreter to begin its commit."""
LOG_RATE, LOG_BURST = 20, 100
"""Verdicts logged a second, and at once; the rest is counted in the next line."""


class Teller:
    """Takes verdicts as they fall and tells them a little later."""

    def __init__(
        self,
        gate: Gate,
        log: FilteringBoundLogger,
        watched: Callable[[], bool],
        tell: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """``watched``: whether anybody watches; ``tell``: give a verdict to all who do."""
        self._gate = gate
        self._log = log
        self._watched = watched
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Scan, PointAt, Decision, int, bool]] = deque()
        self._scheduled = False
        self._left, self._at, self._missed = float(LOG_BURST), 0, 0

    def verdict(self, scan: Scan, at: PointAt, decision: Decision, now: int) -> None:
        """A verdict has fallen."""
        if len(self._waiting) >= 10 * AT_ONCE:
            self._missed += 1
            return
        log = self._may_log(now)
        if log or self._watched():
            self._waiting.append((scan, at, decision, now, log))
            if not self._scheduled:
                self._scheduled = True
                self._loop.call_later(LATER, self._say)

    def _say(self) -> None:
        watched = self._watched()
        for _ in range(min(len(self._waiting), AT_ONCE)):
            scan, at, decision, now, log = self._waiting.popleft()
            if watched:
                self._tell(self._words(scan, at, decision, now))
            if log:
                self._log_line(at, decision)
        self._scheduled = bool(self._waiting)
        if self._scheduled:
            self._loop.call_soon(self._say)

    def _words(self, scan: Scan, at: PointAt, decision: Decision, now: int) -> dict[str, Any]:
        told = self._gate.tell(at, decision, now)
        product = self._gate.world.products.get(decision.product or "")
        granted = decision.verdict is Verdict.GRANTED
        return {
            "at": self._gate.world.calendar.rfc3339(now),
            "point": at.point.name,
            "lane": at.point.lane,
            "reader": scan.reader,
            "verdict": decision.verdict,
            "detail": decision.detail,
            "flags": decision.flags,
            "credential": decision.credential,
            "entitlement": decision.entitlement,
            "product": decision.product,
            "guest": decision.guest,
            "left": decision.left,
            "guests": self._gate.guests_left(scan, at, decision, now) if granted else 0,
            "name": None if product is None else pick(product.name, told.languages) or None,
            "language": spoken(told.languages),
            "notice": told.notice,
            "message": told.message,
        }

    def _log_line(self, at: PointAt, decision: Decision) -> None:
        more: dict[str, Any] = {"not_logged": self._missed} if self._missed else {}
        self._missed = 0
        if decision.detail is not None:
            more["detail"] = decision.detail
        self._log.info(
            "scan",
            point=at.point.name,
            verdict=str(decision.verdict),
            credential=decision.credential,
            **more,
        )

    def _may_log(self, now: int) -> bool:
        self._left = min(LOG_BURST, self._left + max(0, now - self._at) / 1e6 * LOG_RATE)
        self._at = now
        if self._left < 1:
            self._missed += 1
            return False
        self._left -= 1
        return True
