"""Every metric of the gate, declared once (DESIGN.md 8; the names are fixed).

Children are bound where they are used: ``labels().inc()`` costs four times a bound ``inc()``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from gateway import __version__

# A second series for each counter, which nobody asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]

_MICRO = (5e-6, 7.5e-6, 1e-5, 1.5e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3)
_MILLI = (2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)


class Times(Collector):
    """A histogram of seconds for the way of a scan, observed by one thread: without the locks of the
    library's own, an observation costs a fifth."""

    def __init__(
        self, name: str, help_: str, *, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._help = name, help_
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._buckets, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        names = [*map(str, map(float, self._buckets)), "+Inf"]
        counts = accumulate(self._counts)
        buckets = list(zip(names, counts, strict=True))
        yield HistogramMetricFamily(self._name, self._help, buckets=buckets, sum_value=self._sum)


class Tally(Collector):
    """A counter with labels, likewise: whoever counts adds to ``counts``, by the labels' values."""

    def __init__(self, name: str, help_: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        self.counts: dict[tuple[str, ...], int] = {}
        self._name, self._help, self._labels = name, help_, labels
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, count in self.counts.items():
            family.add_metric([*map(str, labels)], count)
        yield family


class Metrics:
    """The gate's registry. Without process and platform collectors: the sync exports its own beside it."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.scans = Tally("gateway_scans", "Scans judged, by verdict.", ["point", "verdict"], registry=r)
        self.repeats = Counter(
            "gateway_repeats_total", "Scans of a code held before the reader.", ["reader"], registry=r
        )
        self.decision = Times(
            "gateway_decision_seconds", "From the code's bytes to the verdict.", buckets=_MICRO, registry=r
        )
        self.scan_to_pulse = Times(
            "gateway_scan_to_pulse_seconds",
            "From the last byte of the code to the relay's command, where the lane was free for it.",
            buckets=_MILLI,
            registry=r,
        )
        self.passages = Tally(
            "gateway_passages",
            "What became of grants, and forced passages.",
            ["lane", "outcome"],
            registry=r,
        )
        self.commit = Times(
            "gateway_ledger_commit_seconds", "Length of a commit of the ledger.", buckets=_MILLI, registry=r
        )
        self.late_commits = Counter(
            "gateway_ledger_late_commits_total",
            "Grants opened after commit_deadline_ms, before their event was on disk.",
            registry=r,
        )
        self.pending_events = Gauge(
            "gateway_ledger_pending_events", "Events in memory that are not yet on disk.", registry=r
        )
        self.lost_events = Counter(
            "gateway_ledger_lost_events_total",
            "Events dropped because the ledger could not be written for too long.",
            registry=r,
        )
        self.ledger_up = Gauge("gateway_ledger_up", "1 while the ledger can be written.", registry=r)
        self.ledger_bytes = Gauge("gateway_ledger_bytes", "Size of the ledger on disk.", registry=r)
        self.ledger_seq = Gauge("gateway_ledger_seq", "Number of the newest event on disk.", registry=r)
        self.reader_up = Gauge(
            "gateway_reader_up", "1 while the reader's device is open.", ["reader"], registry=r
        )
        self.reader_dropped = Counter(
            "gateway_reader_dropped_total",
            "Torn, garbled or overlong codes that were dropped.",
            ["reader"],
            registry=r,
        )
        self.reader_slowed = Counter(
            "gateway_reader_slowed_total",
            "Times a reader was slowed down because of too many unknown codes.",
            ["reader"],
            registry=r,
        )
        self.input_up = Gauge(
            "gateway_input_up", "1 while a passage sensor or emergency input is read.", ["input"], registry=r
        )
        self.lane_state = Gauge(
            "gateway_lane_state",
            "1 for the lane's present state: normal, closed, free or fault.",
            ["lane", "state"],
            registry=r,
        )
        self.occupancy = Gauge("gateway_area_occupancy", "People in the area.", ["area"], registry=r)
        self.credentials = Gauge(
            "gateway_snapshot_credentials", "Credentials in the snapshot in use.", registry=r
        )
        self.generation = Gauge(
            "gateway_snapshot_generation", "Generation in use, 0 without one.", registry=r
        )
        self.snapshot_age = Gauge(
            "gateway_snapshot_age_seconds", "Since the snapshot was last known to be fresh.", registry=r
        )
        self.clock_suspect = Gauge("gateway_clock_suspect", "1 while the clock is not trusted.", registry=r)
        self.changes = Counter(
            "gateway_changes_total", "Changed records applied, by result.", ["result"], registry=r
        )
        self.commands = Counter(
            "gateway_central_commands_total", "Commands of the central, by result.", ["result"], registry=r
        )
        self.answers_refused = Counter(
            "gateway_answers_refused_total",
            "What the courier brought and was not signed, not fresh or not for this gateway.",
            registry=r,
        )
        self.clock_deviation = Gauge(
            "gateway_clock_deviation_seconds", "This clock less the central's, as signed.", registry=r
        )
        self.unacknowledged = Gauge(
            "gateway_ledger_unacknowledged_events", "Events that the central does not have yet.", registry=r
        )
        self.refused_events = Counter(
            "gateway_ledger_refused_events_total", "Events that the central will not have.", registry=r
        )
        self.epoch_conflicts = Counter(
            "gateway_epoch_conflicts_total",
            "Times that the central had other events under our numbers.",
            registry=r,
        )
        self.clients_dropped = Counter(
            "gateway_control_dropped_total",
            "Clients of a control socket that were cut off because they did not read.",
            ["role"],
            registry=r,
        )
        # What can be counted is there from the start: what appears with its first increase is no increase yet
        # for Prometheus. (Those by point, lane and reader: where these are known.)
        for result in ("applied", "set_aside", "own_usage"):
            self.changes.labels(result)
        for result in ("obeyed", "expired", "repeated", "impossible", "malformed", "not_ours"):
            self.commands.labels(result)
        for role in ("admin", "sync"):
            self.clients_dropped.labels(role)
        self.disk_free = Gauge(
            "gateway_disk_free_bytes",
            "Bytes that the gate may still write where its data_dir is.",
            registry=r,
        )
        self.started = Gauge(
            "gateway_start_timestamp_seconds", "When the gate began to admit, by its clock.", registry=r
        )
        self.operators_refused = Counter(
            "gateway_operators_refused_total",
            "Acts and logins of operators that were refused because of their token, by reason.",
            ["reason"],
            registry=r,
        )
        for reason in ("wrong_token", "busy", "no_operators"):
            self.operators_refused.labels(reason)
        info = Gauge("gateway_build_info", "1, with the version as a label.", ["version"], registry=r)
        info.labels(__version__).set(1)

    def text(self) -> bytes:
        """The exposition text."""
        return generate_latest(self.registry)
