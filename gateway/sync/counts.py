"""The sync's own metrics, and what it says of trouble: each kind once."""

from __future__ import annotations

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

disable_created_metrics()  # type: ignore[no-untyped-call]


class Counts:
    """Every metric of the sync process (DESIGN.md 8)."""

    def __init__(self) -> None:
        self.trouble: dict[str, str] = {}
        """What ails each loop now, in a sentence; for ``/health``."""
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        PlatformCollector(registry=r)
        GCCollector(registry=r)
        self.gate_up = Gauge(
            "gateway_gate_up", "1 if the gate answered this scrape within a second.", registry=r
        )
        self.sync_up = Gauge(
            "gateway_sync_up", "1 while the central answers and the gate takes what it says.", registry=r
        )
        self.last_success = Gauge(
            "gateway_sync_last_success_timestamp_seconds",
            "When the gate last took an answer of the central, 0 before the first.",
            registry=r,
        )
        self.certificates = Gauge(
            "gateway_sync_certificate_expiry_timestamp_seconds",
            "When a certificate ends: authority (ca_file), client (client_cert), central (last handshake).",
            ["certificate"],
            registry=r,
        )
        self.requests = Counter(
            "gateway_sync_requests_total",
            "Requests to the central, by call, and status or kind of failure.",
            ["call", "result"],
            registry=r,
        )
        self.received = Counter(
            "gateway_sync_received_bytes_total", "Bytes of answers, by call.", ["call"], registry=r
        )
        self.sent = Counter("gateway_sync_sent_bytes_total", "Bytes of events sent.", registry=r)
        self.events = Counter("gateway_sync_events_total", "Events that the central took.", registry=r)
        self.set_aside = Counter(
            "gateway_sync_set_aside_total",
            "Events set aside because the central fails at them and takes others.",
            registry=r,
        )
        self.refused = Counter(
            "gateway_sync_refused_total",
            "Answers of the central that the gate refused, by call.",
            ["call"],
            registry=r,
        )
        for call in ("changes", "snapshot", "events"):
            self.refused.labels(call)
            for status in ("401", "403"):  # what an alert waits for
                self.requests.labels(call, status)
        self.backlog = Gauge(
            "gateway_sync_backlog_events", "Events on disk that the central has not yet.", registry=r
        )
        self.spool = Gauge(
            "gateway_sync_spool_bytes", "Bytes of the snapshot that is being downloaded.", registry=r
        )
        self.streams = Gauge("gateway_web_streams", "Displays and status pages that are open.", registry=r)
        self.streams_cut = Counter(
            "gateway_web_streams_cut_total",
            "Displays and status pages that were cut off because they did not read.",
            registry=r,
        )
        self.web_refused = Counter(
            "gateway_web_refused_total",
            "Requests to the pages that were refused, by reason.",
            ["reason"],
            registry=r,
        )
        for reason in ("cross_site", "too_many", "no_session", "csrf", "wrong_token", "busy"):
            self.web_refused.labels(reason)


class Trouble:
    """Tells the log each kind of trouble once, and once that it is over: a central that is away for a day is
    two lines, not thousands."""

    def __init__(self, log: structlog.typing.FilteringBoundLogger, what: str, now: dict[str, str]) -> None:
        """``now``: where the trouble of the moment is noted, by ``what``."""
        self._log = log
        self._what = what
        self._now = now
        self._told: set[str] = set()

    def say(self, kind: str, message: str, **fields: object) -> None:
        self._now[self._what] = "; ".join(
            [message, *(str(fields[name]) for name in ("reason", "remedy") if fields.get(name))]
        )
        if kind not in self._told:
            self._told.add(kind)
            self._log.warning(message, what=self._what, **fields)

    def over(self) -> None:
        self._now.pop(self._what, None)
        if self._told:
            self._told.clear()
            self._log.info("works again", what=self._what)
