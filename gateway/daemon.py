"""The gate process, wired: the one place that opens things, connects them and closes them in order.

Start: lock the data_dir, open snapshot and ledger, close grants that a crash left open, reckon who is
where, open relays, sensors, readers and sockets, say that it is ready. Stop: readers first, so that no
grant is made that cannot be opened, and those on their way are; relays in their configured state; the ledger
last.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gateway import __version__, control, log, trust
from gateway.cache import codekey, generations
from gateway.cache.ledger import Ledger
from gateway.cache.ledger_store import RETAIN_MOVEMENTS
from gateway.cache.snapshot import Snapshot
from gateway.calls import Calls
from gateway.clock import TrustedClock
from gateway.config import Config, InputConfig, LaneConfig
from gateway.gate import Gate, LaneAt
from gateway.host import clock_synchronised, lock_data_dir, lock_memory, monotonic, notify, wall
from gateway.metrics import Metrics
from gateway.model import HOUR, MINUTE, LaneMode, Movement, Per, Scan
from gateway.news import News
from gateway.operators import Operators
from gateway.readers.device import Reader
from gateway.replay import world_of
from gateway.teller import Teller
from gateway.turnstile.board import Board
from gateway.turnstile.build import make_input, make_relay
from gateway.turnstile.relay import Input, InputCallbacks, Relay, RelayCallbacks
from gateway.venuetime import DAY

_HOUSEKEEPING = 1.0
_FOR_EVER = 100 * 366 * DAY
_FINISH = 10.0
"""Seconds that a stop waits at most for grants on their way and pulses that go on."""
_SLOW = 2.0
"""Seconds for which a reader is not read after an unknown code beyond the rate."""
_CLOCK_SLACK = 1_000_000
"""Microseconds by which time synchronisation may step the clock back without it being called suspect."""


T = TypeVar("T")


class Daemon:
    """One gate process. ``start``, then ``wait`` until told to stop, then ``stop``."""

    def __init__(self, config: Config, *, signals: bool = True) -> None:
        self.config = config
        self._signals = signals
        self._log = log.logger("gate")
        self.metrics = Metrics()
        self.readers: dict[str, Reader] = {}
        self.relays: dict[str, Relay] = {}
        self.inputs: list[Input] = []
        self.input_faults: dict[str, str | None] = {}
        """Sensors and emergency inputs by name, with what is wrong with them."""
        self.boards: dict[str, Board] = {}
        self.sockets: list[control.Socket] = []
        self.snapshot: Snapshot | None = None
        self.set_aside: list[str] = []
        self._damaged: set[int] = set()
        self._stop = asyncio.Event()
        self._exit = 0
        self._closers: list[Callable[[], None]] = []
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_at = 0
        self._work = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._taking: Future[Snapshot | None] | None = None
        self._behind: Snapshot | None = None
        self._pruned_at = 0
        self._began = 0
        self._history_known = True
        self._watched = 0
        self._stuck: set[str] = set()

    # --- start ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open everything and begin to admit.

        Raises:
            DataDirError: the data_dir cannot be used.
            OSError: a control socket cannot be made.
        """
        config, data_dir = self.config, self.config.gateway.data_dir
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._crashed)
        handed = control.handed_over()
        lock = lock_data_dir(data_dir)
        self._closers.append(lambda: os.close(lock))
        try:
            self._closers.append(lambda: self._work.shutdown(wait=True, cancel_futures=True))
            with contextlib.suppress(OSError):  # what a killed import left is no reason not to start
                generations.clean_leftovers(data_dir)
            pinned = self._pinned(data_dir)
            if pinned is not None and pinned.pinned.revoked:
                _forget_cards(data_dir)  # a power cut may have been before the end of that
            else:
                self._draw_key(data_dir)
            self._open_stores(data_dir)
            self._begin()
            self.news = News(self, pinned, self._behind)
            self.news.begin()
            self._open_devices()
            await self._open_sockets(handed)
            for reader in self.readers.values():
                reader.start()
        except BaseException:
            self.close()
            raise
        if self._signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.loop.add_signal_handler(number, self.ask_to_stop)
        self.metrics.started.set(wall() / 1e6)
        notify(f"READY=1\nSTATUS=admitting, generation {self.generation}")
        self._log.info(
            "ready",
            version=__version__,
            gateway=config.gateway.id,
            generation=self.generation,
            lanes=len(config.lanes),
            readers=len(config.readers),
        )
        self._housekeeping()

    def _draw_key(self, data_dir: Path) -> None:
        if generations.numbers(data_dir) and not (data_dir / codekey.KEY_FILE).exists():
            self._log.error(
                "code.key is gone, and with it the meaning of every snapshot; a new one is drawn",
                remedy="put the old one back from a backup and start again, or import the cards anew",
            )
        codekey.load_or_create(data_dir)

    def _pinned(self, data_dir: Path) -> trust.Trust | None:
        try:
            return trust.load(data_dir)
        except trust.TrustError as error:
            self._log.error("no central is believed", reason=str(error))
            return None

    def _open_stores(self, data_dir: Path) -> None:
        """Snapshot, ledger, and the gate that judges by them; who is where is reckoned by the caller."""
        config = self.config
        self.snapshot = self._open_snapshot()
        world = world_of(self.snapshot, config)
        now, mono = wall(), monotonic()
        self.synchronised = clock_synchronised()
        self.ledger = Ledger.open(
            data_dir,
            config.gateway.id,
            loop=self.loop,
            commit_deadline=config.gateway.commit_deadline_ms * 1000,
            memory_events=config.gateway.ledger_memory_events,
            on_failure=config.gateway.on_ledger_failure,
            on_late=self.metrics.late_commits.inc,
            on_commit=self._committed,
            on_fault=self._ledger_fault,
            recent_from=world.presence_since(now) - DAY,
        )
        self._closers.append(self._close_ledger)
        if self.ledger.set_aside is not None:
            self._log.error(
                "ledger was damaged and is set aside; a new epoch has begun",
                file=str(self.ledger.set_aside),
                reason=self.ledger.set_aside_reason,
                remedy="keep the file: it holds events that may not have been uploaded",
            )
        floors = [f for f in (self.ledger.trusted_time(), self._published()) if f is not None]
        clock = TrustedClock(max(floors, default=None), mono, slack=_CLOCK_SLACK)
        self.gate = Gate(
            config,
            world,
            self.ledger,
            clock,
            self.metrics,
            relay=self._relay,
            holds=self.ledger.holds,
        )
        self.gate.monotonic = monotonic
        self.gate.synchronised = self.synchronised
        self.gate.use(self.snapshot, world)

    def _begin(self) -> None:
        """The ledger's past counts, and the gate is listened to."""
        gate = self.gate
        self._began = gate.clock.read(wall(), monotonic(), synchronised=self.synchronised)
        self._history_known = self.ledger.epoch is not None
        gate.shut = self.ledger.failed is not None and self.config.gateway.on_ledger_failure == "deny"
        self._recall(self._began)
        teller = Teller(gate, log.logger("scans"), lambda: any(x.watched for x in self.sockets), self._tell)
        gate.on_verdict = teller.verdict
        gate.on_slow = self._slow
        gate.on_deadline = self._arm
        gate.on_lane = self._lane_changed

    def _recall(self, now: int) -> None:
        """What the ledger knows of the time before this start: what a crash left open is closed, who is where
        is reckoned, lanes are as they were."""
        sensors = {name for name, lane in self.gate.lanes.items() if lane.sensor}
        closed = self.ledger.close_open_grants(sensors, now, before=self._began)
        if closed:
            self._log.warning("closed grants that had no outcome when the gate stopped", count=len(closed))
        self.gate.rebuild(self.movements(now), now, self.ledger.cleared())
        for lane, mode in self.ledger.lane_modes().items():
            if lane in self.gate.lanes and mode != LaneMode.NORMAL:
                self.gate.restore_mode(lane, LaneMode(mode), monotonic())
                self._log.warning("lane keeps the state that it was set to", lane=lane, state=mode)

    def _open_devices(self) -> None:
        config = self.config
        self._closers.append(self._close_relays)
        for relay in self.relays.values():
            relay.open()
        for lane in config.lanes:
            if lane.passage is not None:
                self._passage(lane.passage, lane.name, None)
        emergencies = {lane.emergency for lane in config.lanes if lane.emergency is not None}
        for contact in emergencies:
            self._emergency(contact, [x.name for x in config.lanes if x.emergency == contact])
        for point in config.points:
            if point.passage is not None:
                self._passage(point.passage, point.point.lane, point.point.name)
        for input_ in self.inputs:
            input_.open()
        for reader in config.readers:
            self.readers[reader.name] = Reader(
                reader, self.loop, self._scanned, self._reader_state, self._dropped
            )
            self.metrics.reader_up.labels(reader.name).set(0)
            self.metrics.reader_dropped.labels(reader.name)
            self.metrics.reader_slowed.labels(reader.name)
        self._closers.append(self._close_readers)

    async def _open_sockets(self, handed: dict[str, socket.socket]) -> None:
        config, data_dir = self.config, self.config.gateway.data_dir
        calls = Calls(self, self.news, Operators(data_dir))
        hello = {"gateway": config.gateway.id, "version": __version__, "epoch": self.ledger.epoch}
        sockets: tuple[tuple[control.Role, dict[str, control.Call], Path], ...] = (
            ("admin", calls.admin(), config.gateway.admin_socket or data_dir / "admin.sock"),
            ("sync", calls.sync(), config.gateway.sync_socket or data_dir / "sync.sock"),
        )
        self._closers.append(self._close_sockets)
        for role, table, path in sockets:
            listening = control.Socket(role, table, hello, self._client_dropped)
            await listening.listen(path, handed.get(role))
            self.sockets.append(listening)

    def _client_dropped(self, role: str) -> None:
        self.metrics.clients_dropped.labels(role).inc()

    def aside(self, path: Path, reason: str) -> None:
        """A generation that cannot be used. From any thread."""
        self.set_aside.append(reason)
        self._log.error("a generation cannot be used; the one before serves", file=path.name, reason=reason)

    def _open_snapshot(self) -> Snapshot | None:
        data_dir = self.config.gateway.data_dir
        newest = Snapshot.open(data_dir, self.aside)
        if newest is None:
            self._log.warning(
                "no snapshot yet: every code is unknown", remedy="gateway import FILE, or join a central"
            )
        if newest is None or newest.position is None:
            return newest
        before = Snapshot.open(data_dir, below=newest.generation)
        if before is None:
            return newest
        if before.history == newest.history and (before.position or 0) > newest.position:
            # It was built last from an older file and has not caught up: it may know a card that was revoked.
            self._behind = newest
            return before
        before.close()
        return newest

    @property
    def generation(self) -> int:
        return 0 if self.snapshot is None else self.snapshot.generation

    def _published(self) -> int | None:
        """The newest time that the central signed."""
        return None if self.snapshot is None else self.snapshot.published

    def movements(self, now: int) -> Iterator[Movement]:
        """All that can still mean presence at ``now``, here and elsewhere, in the order of time."""
        since = self.gate.world.presence_since(now)
        usage: Iterator[Movement] = iter(())
        if self.snapshot is not None:
            usage = (m for m in self.snapshot.movements_since(since) if not self.gate.past.is_own(m))
        return heapq.merge(self.ledger.movements_since(since), usage, key=lambda m: m.at)

    # --- relays and sensors ----------------------------------------------------------------------------

    def _relay(self, lane: LaneConfig) -> Relay:
        name = lane.name

        def state(up: bool, reason: str) -> None:
            self.gate.relay_state(name, None if up else reason, wall(), monotonic())
            if up:
                self._log.info("relay is ready", lane=name)
            else:
                self._log.error("relay is lost", lane=name, reason=reason)

        def failed(reason: str) -> None:
            self._log.error("the relay did not open the lane", lane=name, reason=reason)
            self.gate.not_pulsed(name, reason, wall(), monotonic())

        def pulsed(at: int) -> None:
            self.gate.pulsed(name, at)

        relay = make_relay(lane.relay, self.loop, RelayCallbacks(state, failed, pulsed), self.boards)
        self.relays[name] = relay
        return relay

    def _close_sockets(self) -> None:
        for listening in self.sockets:
            listening.close()

    def _close_readers(self) -> None:
        for reader in self.readers.values():
            reader.close()

    def _close_relays(self) -> None:
        for lane in self.config.lanes:
            self.relays[lane.name].close(lane.fail == "safe")
        for input_ in self.inputs:
            input_.close()

    def _passage(self, config: InputConfig, lane: str, point: str | None) -> None:
        def edge(active: bool, _at: int) -> None:
            if active:
                self.gate.passed(lane, point, wall(), monotonic())

        self._input(config, f"passage sensor of {point or lane}", edge)

    def _emergency(self, config: InputConfig, lanes: list[str]) -> None:
        """One contact may set several lanes free."""

        def edge(active: bool, _at: int) -> None:
            self._log.warning("emergency input", lanes=lanes, active=active)
            for lane in lanes:
                self.gate.emergency(lane, active, wall(), monotonic())

        self._input(config, f"emergency input of {', '.join(lanes)}", edge, level=True)

    def _input(
        self, config: InputConfig, what: str, edge: Callable[[bool, int], None], *, level: bool = False
    ) -> None:
        """``level``: the contact's state counts, not only its changes: it is told when the input is back."""
        up_now = self.metrics.input_up.labels(what)
        up_now.set(0)

        def state(up: bool, reason: str) -> None:
            up_now.set(up)
            self.input_faults[what] = None if up else reason
            if not up:
                self._log.error("input is lost", input=what, reason=reason)
                return
            self._log.info("input is ready", input=what)
            if level and input_.active is not None:
                edge(input_.active, monotonic())

        input_ = make_input(config, self.loop, InputCallbacks(edge, state))
        self.inputs.append(input_)

    # --- scans ---------------------------------------------------------------------------------------

    def _scanned(self, scan: Scan) -> None:
        self.gate.scanned(scan)

    def _tell(self, verdict: Mapping[str, Any]) -> None:
        for listening in self.sockets:
            listening.tell("verdict", verdict)

    def _lane_changed(self, at: LaneAt) -> None:
        for listening in self.sockets:
            listening.tell("lane", at.now())

    def _reader_state(self, name: str, up: bool, reason: str) -> None:
        self.metrics.reader_up.labels(name).set(up)
        if up:
            self._log.info("reader is ready", reader=name)
        else:
            self._log.warning("reader is down", reader=name, reason=reason)

    def _dropped(self, name: str, count: int) -> None:
        self.metrics.reader_dropped.labels(name).inc(count)

    def _slow(self, name: str) -> None:
        self._log.warning("too many unknown codes: the reader is slowed down", reader=name)
        self.readers[name].slow(_SLOW)

    # --- ledger ----------------------------------------------------------------------------------------

    def _close_ledger(self) -> None:
        if not self.ledger.close(5.0):
            self._log.error("events could not be written before the stop", count=self.ledger.pending)

    def _committed(self, seconds: float, _events: int) -> None:
        self.metrics.commit.observe(seconds)

    def _ledger_fault(self, reason: str | None) -> None:
        self.metrics.ledger_up.set(reason is None)
        if self._began:
            self.gate.shut = reason is not None and self.config.gateway.on_ledger_failure == "deny"
        if reason is None:
            self._log.info("ledger can be written again")
            if not self._history_known:  # it could not even be opened at the start
                self._history_known = True
                self._recall(self.gate.clock.read(wall(), monotonic(), synchronised=self.synchronised))
        else:
            self._log.error(
                "ledger cannot be written",
                reason=reason,
                on_ledger_failure=self.config.gateway.on_ledger_failure,
            )

    # --- time --------------------------------------------------------------------------------------------

    def _arm(self, due: int) -> None:
        """One timer, at the earliest thing that a lane waits for; each lane tells its own (asking all of
        them at every scan took a third of a burst with 32 lanes)."""
        if self._deadline is not None:
            if self._deadline_at <= due:
                return
            self._deadline.cancel()
        self._deadline_at = due
        self._deadline = self.loop.call_at(due / 1e6, self._due)

    def _due(self) -> None:
        self._deadline = None
        self.gate.tick(wall(), max(monotonic(), self._deadline_at))

    def _housekeeping(self) -> None:
        """Once a second: what a scrape shows, staleness, and the watchdog."""
        now = wall()
        gate, metrics = self.gate, self.metrics
        if self.synchronised is not (synchronised := clock_synchronised()):
            self.synchronised = gate.synchronised = synchronised
            self._log.info("clock", synchronised=synchronised)
        now = gate.clock.read(now, monotonic(), synchronised=self.synchronised)
        metrics.clock_suspect.set(gate.clock.suspect)
        age = self.snapshot_age(now)
        limit = self.config.gateway.max_snapshot_age_h
        gate.stale = (
            self.config.gateway.on_stale == "deny"
            and limit is not None
            and age is not None
            and age > limit * HOUR
        )
        metrics.pending_events.set(self.ledger.pending)
        self._look_for_damage()
        self._feed_watchdog()
        if now - self._pruned_at > 60 * MINUTE:
            self._pruned_at = now
            self.ledger.prune(now, self.config.gateway.retain_days * DAY, self._keep_movements())
            self._work.submit(lock_memory, self.config.gateway.data_dir)
        if (day := gate.world.calendar.day(now)) != self._watched:
            self._watched = day
            self.ledger.watch(gate.world.presence_since(now))
        self._timer = self.loop.call_later(_HOUSEKEEPING, self._housekeeping)

    def _feed_watchdog(self) -> None:
        """The loop runs, or this would not be called; the readers have to as well. The ledger has no say: a
        slow card must not have the gate started over and over."""
        stuck = {name for name, reader in self.readers.items() if not reader.works()}
        for name in sorted(stuck - self._stuck):
            self._log.critical("reader does not read: the watchdog is fed no more", reader=name)
        self._stuck = stuck
        if not stuck:
            notify("WATCHDOG=1")

    def _look_for_damage(self) -> None:
        """A damaged row was met: its card is unknown until the cards are imported anew."""
        snapshot = self.snapshot
        if snapshot is not None and snapshot.damaged is not None and snapshot.generation not in self._damaged:
            self._damaged.add(snapshot.generation)
            self.set_aside.append(f"generation {snapshot.generation}: {snapshot.damaged}")
            self._log.error(
                "the snapshot is damaged: some cards are not found",
                generation=snapshot.generation,
                fault=snapshot.damaged,
                remedy="gateway import FILE again, and see to the disk",
            )

    def _keep_movements(self) -> int:
        """How long limits can need movements: for ever where a product counts by term, else over a year."""
        by_term = any(
            limit.per is Per.TERM
            for product in self.gate.world.products.values()
            for rule in product.rules
            for limit in (*rule.limits, *rule.guest_limits)
        )
        return _FOR_EVER if by_term else RETAIN_MOVEMENTS

    @property
    def up(self) -> dict[str, bool]:
        """Readers by name, and whether their device is open."""
        return {name: reader.up for name, reader in self.readers.items()}

    def snapshot_age(self, now: int) -> int | None:
        """Microseconds since the snapshot in use was known to be what the central has, None without one."""
        if self.snapshot is not None and self.news.fresh_at is not None:
            return monotonic() - self.news.fresh_at
        return None if self.snapshot is None else max(0, self.snapshot.age(now))

    def scrape(self) -> bytes:
        """The metrics as they are now."""
        metrics, gate = self.metrics, self.gate
        now = gate.clock.read(wall(), monotonic(), synchronised=self.synchronised)
        for area in gate.world.areas.known():
            metrics.occupancy.labels(area).set(gate.crowd.count(area, now))
        metrics.pending_events.set(self.ledger.pending)
        metrics.unacknowledged.set(self.ledger.last_seq - self.ledger.acknowledged)
        metrics.ledger_up.set(self.ledger.failed is None)
        metrics.ledger_seq.set(self.ledger.last_seq)
        with contextlib.suppress(OSError):
            metrics.ledger_bytes.set((self.config.gateway.data_dir / "ledger.db").stat().st_size)
        with contextlib.suppress(OSError):
            disk = os.statvfs(self.config.gateway.data_dir)
            metrics.disk_free.set(disk.f_bavail * disk.f_frsize)
        lost = self.ledger.lost - self._lost_told
        self._lost_told += lost
        metrics.lost_events.inc(lost)
        metrics.generation.set(self.generation)
        metrics.credentials.set(0 if self.snapshot is None else self.snapshot.counts().credentials)
        metrics.snapshot_age.set((self.snapshot_age(now) or 0) / 1e6)
        return metrics.text()

    _lost_told = 0

    # --- snapshot --------------------------------------------------------------------------------------

    def take_generation(self) -> Future[Snapshot | None]:
        """Open a newer generation, off the loop; hand the result to ``switch``. None: there is none. Who asks
        while one is being opened gets the same."""
        if self._taking is None or (self._taking.done() and self._taken(self._taking)):
            candidate = self.news.candidate
            above = max(self.generation, 0 if candidate is None else candidate.generation)
            data_dir = self.config.gateway.data_dir
            self._taking = self.work(lambda: Snapshot.open(data_dir, self.aside, above=above))
        return self._taking

    def work(self, do: Callable[[], T]) -> Future[T]:
        """Do this in the one thread for what takes long, after what it was asked for before."""
        return self._work.submit(do)

    def _taken(self, taking: Future[Snapshot | None]) -> bool:
        """Whether nobody is still to be handed what was opened."""
        if taking.exception() is not None:
            return True
        opened = taking.result()
        return opened is None or opened.generation <= self.generation

    def switch(self, snapshot: Snapshot, *, keep_before: bool = True) -> None:
        """Use this generation from now on; the one before stays on disk unless ``keep_before`` is false,
        older ones go."""
        if snapshot.generation <= self.generation:
            return  # somebody else who asked for it was first
        before, self.snapshot = self.snapshot, snapshot
        self._judge_by(snapshot, usage=snapshot.has_usage or (before is not None and before.has_usage))
        if before is not None:
            self._work.submit(before.close)
        self._work.submit(
            generations.prune, self.config.gateway.data_dir, snapshot.generation, keep_before=keep_before
        )
        self._log.info(
            "generation in use", generation=snapshot.generation, credentials=snapshot.counts().credentials
        )

    def recompile(self, *, usage: bool) -> None:
        """Records that are compiled in memory have changed in the generation in use; ``usage``: that too."""
        self._judge_by(self.snapshot, usage=usage)

    def _judge_by(self, snapshot: Snapshot | None, *, usage: bool) -> None:
        before, world = self.gate.world, world_of(snapshot, self.config)
        self.gate.use(snapshot, world)
        # Reckoning everybody anew takes long on a full day; new products and cards move nobody.
        if usage or before.venue != world.venue or before.areas.records != world.areas.records:
            now = self.gate.clock.read(wall(), monotonic(), synchronised=self.synchronised)
            self.gate.rebuild(self.movements(now), now)

    def wipe(self) -> None:
        """Forget every card: the central has revoked this gateway. The key goes too, so that nothing that is
        left on the disk means anything."""
        before, self.snapshot = self.snapshot, None
        self._judge_by(None, usage=True)

        def remove() -> None:
            if before is not None:
                before.close()
            try:
                _forget_cards(self.config.gateway.data_dir)
            except OSError as error:
                self._log.error("the cards cannot be removed", reason=str(error))

        self._work.submit(remove)

    def apply(self, records: list[dict[str, Any]], cursor: str | None) -> Future[Any]:
        """Apply changes to the generation in use, off the loop."""
        assert self.snapshot is not None
        return self._work.submit(self.snapshot.apply, records, cursor)

    # --- stop ------------------------------------------------------------------------------------------

    def ask_to_stop(self, code: int = 0) -> None:
        self._exit = max(self._exit, code)
        self._stop.set()

    async def wait(self) -> int:
        """Until told to stop; the exit status."""
        await self._stop.wait()
        notify("STOPPING=1")
        return self._exit

    async def finish(self) -> None:
        """Read no more, and let in who has been granted: without this a restart would use up the ticket of
        somebody whose event was on its way to the disk, and shut the lane before them."""
        self._close_readers()
        until = self.loop.time() + _FINISH
        while self._unfinished() and self.loop.time() < until:  # noqa: ASYNC110 - the writer and relays are threads
            await asyncio.sleep(0.005)

    def _unfinished(self) -> bool:
        if self.ledger.pending and self.ledger.failed is None:
            return True
        now = monotonic()
        lanes = self.gate.lanes.values()
        # Where there is a sensor, who still waits in the lane's queue is given back at the next start.
        return any((at.lane.ready_at or 0) > now or (at.lane.pending and not at.sensor) for at in lanes)

    def close(self) -> None:
        """Close everything in the opposite order of opening."""
        for handle in (self._deadline, getattr(self, "_timer", None)):
            if handle is not None:
                handle.cancel()
        news = getattr(self, "news", None)
        if news is not None:
            news.close()
        while self._closers:
            self._closers.pop()()
        for snapshot in (self.snapshot, None if news is None else news.candidate):
            if snapshot is not None:
                snapshot.close()

    def _crashed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug: say so and stop; the service manager starts us again. Half a gate is worse than none."""
        error = context.get("exception")
        self._log.critical("internal error", message=context.get("message"), exc_info=error)
        self.ask_to_stop(70)


def _forget_cards(data_dir: Path) -> None:
    """The key first: without it nothing that is left means anything. Raises OSError."""
    (data_dir / codekey.KEY_FILE).unlink(missing_ok=True)
    codekey.sync_folder(data_dir)
    generations.remove_all(data_dir)
    codekey.sync_folder(data_dir)


async def serve(config: Config) -> int:
    """Run a gate until SIGTERM or SIGINT; the exit status."""
    daemon = Daemon(config)
    await daemon.start()
    # What is there now stays until the end, and a scan leaves no cycles behind: the collector need not walk
    # all of it again and again, with everybody at the gate waiting.
    gc.freeze()
    gc.set_threshold(10_000)
    try:
        status = await daemon.wait()
        if status == 0:
            await daemon.finish()
        return status
    finally:
        daemon.close()
