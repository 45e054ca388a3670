"""What the central's signed answers do to the gate, and what the gate asks of it (docs/protocol.md).

The courier carries; everything is decided here. Each call is a few short steps on the loop, and what takes
long (verifying, writing, building) is done in a thread or a child process meanwhile, so that no scan waits.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import orjson

from gateway import __version__, log
from gateway.acts import Acts, text, whole
from gateway.cache import generations, received
from gateway.cache.codekey import CodeKeyError
from gateway.cache.generations import SnapshotError
from gateway.cache.ledger import Ledger
from gateway.cache.ledger_rows import EVENT_COLUMNS
from gateway.cache.snapshot import Applied, Snapshot
from gateway.control import CallError, Later, TakeFd
from gateway.host import monotonic, wall, write_durably
from gateway.model import HOUR, MINUTE, SECOND
from gateway.running import Running
from gateway.sync import protocol
from gateway.sync.protocol import Changes, ProtocolError, Said, Uploaded
from gateway.trust import LONGEST_TTL, Trust, pinned_from, succeed

T = TypeVar("T")

NOT_ENROLLED = "no central is pinned here: gateway enroll URL CODE"
COMPILED = ("venue", "area", "event", "product")
"""Kinds of records that are compiled in memory."""
_GLANCE = 0.002
"""Seconds between two looks at whether a thread is done."""
_PAUSE = 0.01
"""Seconds between two steps of what nobody waits for any more."""
_ASKED = 50
"""Usages that the ledger is asked for in one step: those of a gate that was offline come back to it in
hundreds of thousands."""
_STEP = 100
"""Events read at a time: half a millisecond, for which a look-up on the loop has to wait."""
_SPREAD = 20 * HOUR
"""A deletion is followed by a new snapshot within a day, at each gateway at a time of its own."""
_RETRY = 30 * SECOND
"""After a snapshot that came to nothing; doubled each time, up to an hour."""
_SLOW_CLOCK = 2 * SECOND
"""A deviation from the central's clock that is worth a warning."""
_STATES = {"open": None, "close": "closed", "free": "free", "normal": "normal"}

Steps = Generator[Any, None, None]


class News:
    """The gate's end of the sync. Its public methods are calls of the sockets."""

    def __init__(self, daemon: Running, trust: Trust | None, candidate: Snapshot | None = None) -> None:
        """``candidate``: a generation that was built before the start, and is behind the one in use."""
        self._d = daemon
        self._trust = trust
        self._log = log.logger("news")
        self._busy = False
        self._building: asyncio.Task[received.Received] | None = None
        self.candidate = candidate
        """A generation that is whole, but behind the one in use: changes go into it until it is not."""
        self.fresh_at: int | None = None
        """Monotonic: when the question was asked whose answer left nothing open in the generation in use."""
        self._heard_at: int | None = None
        """The same of the newest answer of any kind."""
        self.deviation: int | None = None
        """Our clock less the central's, microseconds, as of the newest answer."""
        self._forget: tuple[int, int] | None = None
        self._forget_known = False
        """An answer to the cursor in use has said whether somebody is to be forgotten."""
        self._quick_at: int | None = None
        self._acknowledged_at = 0
        self._retry_at = self._retries = 0
        self._warned = False

    def begin(self) -> None:
        """The gate has started: what was left over is done."""
        trust, d = self._trust, self._d
        if trust is None:
            self._drop_candidate()
            return
        if trust.pinned.revoked:
            d.wipe()
        if d.set_aside:
            trust.pinned.want_snapshot = True
        self._pass_over_what_is_not_owed()
        if trust.pinned.new_epoch:
            self._draw_epoch("the gateway was enrolled", d.ledger.last_seq)

    def _pass_over_what_is_not_owed(self) -> None:
        """Events that were another central's are never sent; they must not hold up the mark either."""
        ledger, last = self._d.ledger, self._need().pinned.owed_from - 1
        epoch = ledger.epoch_of(last)
        if last > ledger.acknowledged and epoch is not None:
            ledger.acknowledge(epoch, last)

    @property
    def enrolled(self) -> bool:
        return self._trust is not None

    def status(self) -> dict[str, Any] | None:
        """For people: which central, and when it was last heard; null where none is pinned."""
        trust = self._trust
        if trust is None:
            return None
        return {
            "url": trust.pinned.url,
            "venue": trust.pinned.venue,
            "keys": list(trust.pinned.keys),
            "revoked": trust.pinned.revoked,
            "heard_s": None if self._heard_at is None else (monotonic() - self._heard_at) // SECOND,
            "clock_deviation_s": None if self.deviation is None else round(self.deviation / 1e6, 3),
            "building": self._building is not None,
        }

    # --- the questions -------------------------------------------------------------------------------

    def poll(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """What to ask ``/v1/changes`` with, and whether a snapshot is to be fetched."""
        trust = self._trust
        if trust is None:
            return {"enrolled": False}
        now = monotonic()
        # An answer that came at once says best what time it is for the central; see Trust.latest.
        quick = self.candidate is not None or self._quick_at is None or now - self._quick_at > HOUR
        if quick:
            self._quick_at = now
        target = self._target
        return {
            "enrolled": True,
            "gateway": trust.pinned.gateway,
            "venue": trust.pinned.venue,
            "url": trust.pinned.url,
            "nonce": trust.draw(now, protocol.CHANGES),
            "cursor": None if target is None else target.cursor,
            "keys": list(trust.pinned.keys),
            "wait": not quick,
            "snapshot": self._wanted(now),
            "revoked": trust.pinned.revoked,
            "condition": self._condition(),
        }

    @property
    def _target(self) -> Snapshot | None:
        return self._d.snapshot if self.candidate is None else self.candidate

    def _wanted(self, now: int) -> dict[str, Any] | None:
        """Whether a snapshot is to be fetched, and at least how new."""
        trust, used = self._need(), self._d.snapshot
        if trust.pinned.revoked or self.candidate is not None or self._building is not None:
            return None
        # Its history must be known from a fresh answer, or an old central's snapshot would do.
        if self._heard_at is None or now < self._retry_at:
            return None
        same = used is not None and used.history is not None and used.history == trust.pinned.history
        if same and not trust.pinned.want_snapshot and not self._must_forget(now):
            return None
        return {"at_least": used.cursor if same and used is not None else None}

    def _must_forget(self, now: int) -> bool:
        """Somebody was deleted after the snapshot in use was built, so its file may still hold them."""
        used = self._d.snapshot
        if self._forget is None or used is None or self._base(used) >= self._forget[0]:
            return False
        gateway = self._need().pinned.gateway.encode()
        spread = int.from_bytes(hashlib.blake2b(gateway, digest_size=4).digest(), "big") * _SPREAD >> 32
        return self._need().latest(now) >= self._forget[1] + spread

    def _condition(self) -> dict[str, Any]:
        d = self._d
        snapshot, ledger = d.snapshot, d.ledger
        return {
            "version": __version__,
            "generation": d.generation,
            "credentials": 0 if snapshot is None else snapshot.counts().credentials,
            "position": None if snapshot is None else snapshot.position,
            "epoch": None if ledger.epoch is None else str(ledger.epoch),
            "last_seq": ledger.last_seq,
            "acknowledged": ledger.acknowledged,
            "ledger_fault": ledger.failed,
            "lanes": {
                name: "fault" if at.fault is not None else str(at.lane.mode)
                for name, at in d.gate.lanes.items()
            },
            "readers_down": [name for name, up in d.up.items() if not up],
            "clock_suspect": d.gate.clock.suspect,
            "clock_deviation_s": None if self.deviation is None else round(self.deviation / 1e6, 3),
            "snapshot_faults": len(d.set_aside),
        }

    # --- /v1/changes ---------------------------------------------------------------------------------

    def answer(self, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """An answer to ``/v1/changes``, as it came: verified whole, or refused whole."""
        return self._to_the_end(self._one_at_a_time(self._answer(*_answered(arguments))))

    def _answer(self, type_: str, body: str, signature: str) -> Steps:
        trust = self._need()
        signer, changes = yield from self._until(
            lambda: self._read(protocol.CHANGES, type_, body, signature, protocol.changes_of)
        )
        self._same(trust)
        said = changes.said
        asked = trust.fresh(said, monotonic(), protocol.CHANGES)
        self._learn(said)
        if changes.revoked:
            yield from self._revoke()
            yield {"changed": 0, "set_aside": 0, "commands": 0, "more": False, "gone": False, "revoked": True}
            return
        if changes.gone:
            yield from self._gone(said)
            self._heard_at = asked
            yield {"changed": 0, "set_aside": 0, "commands": 0, "more": False, "gone": True, "revoked": False}
            return
        target = self._asked_with(changes)
        if trust.pinned.revoked or trust.pinned.history != said.history:
            trust.pinned.revoked, trust.pinned.history = False, said.history
            yield from self._keep(trust.save)
        self._heard_at = asked
        self._forget_known = True
        if changes.forget_position is not None:
            self._forget = (changes.forget_position, changes.forget_at)
        records, commands, bad = yield from self._take_out(changes, signer)
        obeyed = yield from self._obey(commands)
        applied = yield from self._apply(target, changes, records)
        if target is self._d.snapshot and not changes.more:
            self.fresh_at = asked
        self._compare(said)
        yield {
            "changed": len(applied.changed),
            "set_aside": len(applied.bad) + bad,
            "commands": obeyed,
            "more": changes.more,
            "gone": False,
            "revoked": False,
        }

    def _read(
        self,
        purpose: str,
        type_: str,
        body: str,
        signature: str,
        parse: Callable[[Mapping[str, Any]], T],
    ) -> tuple[str, T]:
        """In the thread: the bytes, who signed them, and what they say."""
        raw = _unpacked(body)
        signer = self._need().verify(purpose, raw, signature)
        return signer, parse(protocol.decode(raw, type_))

    def _asked_with(self, changes: Changes) -> Snapshot:
        """The snapshot whose cursor was asked with, and that the changes follow on. Also the one in use while
        another catches up: a question that was open when that came is still worth its answer."""
        target = self._target
        if target is not None and changes.cursor != target.cursor:
            target = self._d.snapshot
        if target is None or changes.cursor != target.cursor:
            raise ProtocolError("cursor: it does not follow on what is here")
        if changes.said.history != target.history:
            raise ProtocolError("history: the log is another one; it should have been 410")
        if changes.position < (target.position or 0):
            raise ProtocolError("position: the log went back")
        return target

    def _learn(self, said: Said) -> None:
        """What time it is for the central."""
        d, now = self._d, monotonic()
        d.gate.clock.trust(said.time, now)
        self.deviation = wall() - said.time
        d.metrics.clock_deviation.set(self.deviation / 1e6)
        far = abs(self.deviation) > _SLOW_CLOCK
        if far and not self._warned:
            self._log.warning(
                "the clock and the central's differ",
                seconds=round(self.deviation / 1e6, 1),
                remedy="see to time synchronisation: timedatectl",
            )
        self._warned = far

    def _take_out(
        self, changes: Changes, signer: str
    ) -> Generator[Any, None, tuple[list[Any], list[Any], int]]:
        """Keys are pinned before anything else is done; commands and what the own ledger has come apart. Also
        how many bad keys were set aside: one must not hold up every revocation that follows."""
        trust, d = self._need(), self._d
        records: list[Any] = []
        commands: list[Any] = []
        pinned, bad = False, 0
        for record in changes.records:
            kind = record.get("kind") if isinstance(record, dict) else None
            if kind == "command":
                commands.append(record)
            elif kind == "key":
                try:
                    pinned |= trust.pin_key(record, signer)
                except ProtocolError as error:
                    bad += 1
                    self._log.warning("the central sent a bad key; it is set aside", reason=str(error))
            else:
                records.append(record)
        if pinned:
            self._log.info("the central's keys are others", keys=list(trust.pinned.keys))
            yield from self._keep(trust.save)
        others: list[Any] = []
        for start in range(0, len(records), _ASKED):
            if start:
                yield Later()
            part = records[start : start + _ASKED]
            numbers = [self._own_number(record) for record in part]
            own = d.ledger.held({number for number in numbers if number is not None})
            others += [record for record, number in zip(part, numbers, strict=True) if number not in own]
        d.metrics.changes.labels("own_usage").inc(len(records) - len(others))
        d.metrics.changes.labels("set_aside").inc(bad)
        return others, commands, bad

    def _own_number(self, record: Any) -> tuple[int, int] | None:
        """(epoch, seq) of a usage that tells of what should stand in our own ledger."""
        if not isinstance(record, dict) or record.get("kind") != "usage":
            return None
        if record.get("gateway") != self._need().pinned.gateway or record.get("passage") == "not_taken":
            return None
        epoch, seq = record.get("epoch"), record.get("seq")
        return (epoch, seq) if type(epoch) is int and type(seq) is int else None

    def _apply(self, target: Snapshot, changes: Changes, records: list[Any]) -> Generator[Any, None, Applied]:
        d, said = self._d, changes.said
        if not records and changes.next == target.cursor:
            if said.time - (target.published or 0) > HOUR:
                yield from self._until(partial(target.touch, said.time))
            self._switch_if_reached()
            return Applied()
        had_usage = target.has_usage
        published = None if changes.more else said.time
        try:
            applied = yield from self._until(
                partial(target.apply, records, changes.next, published, position=changes.position)
            )
        except SnapshotError:
            self._need().pinned.want_snapshot = True  # as where there is no room in this one
            self._drop_candidate()
            raise
        d.metrics.changes.labels("applied").inc(len(applied.changed))
        d.metrics.changes.labels("set_aside").inc(len(applied.bad))
        for bad in applied.bad[:5]:
            self._log.warning(
                "the central sent a bad record; it is set aside",
                kind=bad.kind, id=bad.id, field=bad.field, fault=bad.message,
            )  # fmt: skip
        if target is d.snapshot:
            self._adopt(applied, records, had_usage)
        self._switch_if_reached()
        return applied

    def _adopt(self, applied: Applied, records: Sequence[Any], had_usage: bool) -> None:
        """The generation in use has changed: what is held in memory follows."""
        d = self._d
        kinds = kinds_of(records)
        if applied.replaced_usage or not kinds.isdisjoint(COMPILED):
            d.recompile(usage="usage" in kinds)
            return
        moved = applied.new_usage
        if moved:
            if not had_usage:
                d.gate.use(d.snapshot, d.gate.world)  # who has not moved is asked elsewhere from now on
            now = d.gate.clock.read(wall(), monotonic(), synchronised=d.synchronised)
            d.gate.happened(moved, now)

    def _switch_if_reached(self) -> None:
        """A new generation is used when it has caught up with the one in use."""
        candidate, used = self.candidate, self._d.snapshot
        if candidate is None:
            return
        same = used is not None and used.history == candidate.history
        if used is not None and same and (candidate.position or 0) < (used.position or 0):
            return
        if used is not None and candidate.generation <= used.generation:
            self._drop_candidate()  # somebody has imported cards meanwhile
            return
        self.candidate = None
        forget = self._forget
        stale = not self._forget_known or (
            forget is not None and used is not None and self._base(used) < forget[0]
        )
        self._retries = self._retry_at = 0
        self._need().pinned.want_snapshot = False
        self._d.work(partial(write_durably, *self._need().save()))
        self._d.switch(candidate, keep_before=not stale)

    @staticmethod
    def _base(snapshot: Snapshot) -> int:
        return -1 if snapshot.base is None else snapshot.base

    def _gone(self, said: Said) -> Steps:
        """The cursor is worth nothing any more: the central was restored, or we were away for too long."""
        trust = self._need()
        self._drop_candidate()
        changed = trust.pinned.history != said.history
        if changed:
            self._log.warning("the central's log is another one: it was restored, or set up anew")
        trust.pinned.history, trust.pinned.want_snapshot, trust.pinned.revoked = said.history, True, False
        self._forget, self._forget_known = None, False
        yield from self._keep(trust.save)
        self._compare(said)

    def _drop_candidate(self) -> None:
        """Its file goes too: at the next start it would be the newest."""
        if self.candidate is not None:
            self._d.work(partial(_discard, self.candidate))
            self.candidate = None
            self._try_later()

    def _revoke(self) -> Steps:
        trust = self._need()
        if trust.pinned.revoked:
            return
        self._log.error(
            "the central has revoked this gateway: its cards are forgotten",
            remedy="gateway enroll URL CODE, with a new code",
        )
        trust.pinned.revoked = trust.pinned.want_snapshot = True
        yield from self._keep(trust.save)
        if self._building is not None:
            self._building.cancel()
        self._drop_candidate()
        self._d.wipe()

    # --- commands ------------------------------------------------------------------------------------

    def _obey(self, commands: Sequence[dict[str, Any]]) -> Generator[Any, None, int]:
        """Each at most once: it is remembered on disk before it is obeyed."""
        trust, d = self._need(), self._d
        new = []
        for command in commands:
            result = self._judged(command)
            new.append((command, result))
            if result == "obeyed":
                trust.remember(command["id"])
        todo = [command for command, result in new if result == "obeyed"]
        if todo:
            yield from self._keep(trust.save_obeyed)
        acts = Acts(d, "central")
        for command, result in new:
            if result == "obeyed":
                try:
                    _perform(acts, command)
                except CallError as error:
                    result = "impossible"
                    self._log.warning("a command of the central cannot be obeyed", reason=str(error))
            d.metrics.commands.labels(result).inc()
            self._log.info("command of the central", do=str(command.get("do"))[:20], result=result)
        return len(todo)

    def _judged(self, command: dict[str, Any]) -> str:
        """What is to be done with a command that was signed."""
        trust = self._need()
        try:
            id_, do = protocol.text(command, "id"), protocol.text(command, "do", 20)
            until = protocol.instant(command, "at") + protocol.whole(command, "ttl_s") * SECOND
            at = protocol.instant(command, "at")
        except ProtocolError:
            return "malformed"
        if do not in protocol.ACTS or until - at > LONGEST_TTL:
            return "malformed"
        if command.get("gateway") != trust.pinned.gateway:
            return "not_ours"
        if id_ in trust.obeyed:
            return "repeated"
        return "obeyed" if trust.latest(monotonic()) <= until else "expired"

    # --- /v1/snapshot ----------------------------------------------------------------------------------

    def generation(self, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """A snapshot file that the courier has fetched, as a file descriptor."""
        manifest, signature = text(arguments, "manifest"), text(arguments, "signature")
        return self._to_the_end(self._guarded(self._generation(manifest, signature)))

    def _generation(self, encoded: str, signature: str) -> Steps:
        trust, d = self._need(), self._d
        if self._building is not None or self.candidate is not None or self._busy_taking:
            raise CallError("busy", "a snapshot is being built already")
        if trust.pinned.revoked or self._heard_at is None:
            raise ProtocolError("no fresh answer of the central asks for a snapshot")
        self._busy_taking = True
        handed = TakeFd()
        try:
            _, manifest = yield from self._until(
                lambda: self._read(protocol.SNAPSHOT_FILE, protocol.JSON, encoded, signature, _manifest)
            )
            self._fits(trust, manifest)
            yield handed
            assert handed.fd is not None
            self._fits(trust, manifest)
            source = f"the central, {trust.pinned.url}"
            self._building = asyncio.get_running_loop().create_task(
                received.receive(d.config.gateway.data_dir, handed.fd, manifest, source=source)
            )
            while not self._building.done():
                yield Later(0.05)
            result = _result(self._building)
            if result.code == "damaged":
                raise ProtocolError(result.error)
            if not result.ok:
                raise CallError("not_applied", result.error)
            self._log.info("snapshot built", generation=result.generation, set_aside=result.bad)
            for fault in result.faults:
                self._log.warning("the central sent a bad record; it is set aside", fault=fault)
            opened = yield from self._until(
                lambda: Snapshot.open(d.config.gateway.data_dir, d.aside, above=d.generation)
            )
            if opened is None or opened.generation <= d.generation:
                raise ProtocolError("the generation that was built cannot be opened")
            while self._busy:  # what is being applied may bring the one in use beyond this one
                yield Later(_GLANCE)
            try:
                self._fits(trust, manifest)
            except ProtocolError:  # the central has said something else while it was built
                d.work(partial(_discard, opened))
                raise
            self.candidate = opened
            self._switch_if_reached()
        except (ProtocolError, CallError, SnapshotError, CodeKeyError):
            self._try_later()
            raise
        finally:
            self._busy_taking = False
            if self._building is not None and not self._building.done():
                self._building.cancel()
            self._building = None
            handed.close()
            if self._need().pinned.revoked:
                d.wipe()  # it may have been put in place at the last moment
        yield {
            "generation": opened.generation,
            "state": "in_use" if self.candidate is None else "catching_up",
        }

    _busy_taking = False

    def _fits(self, trust: Trust, manifest: Mapping[str, Any]) -> None:
        """Whether the snapshot is one of the log that the central now goes by. Raises ProtocolError."""
        self._same(trust)
        if trust.pinned.revoked:
            raise ProtocolError("the central has revoked this gateway")
        if manifest["venue"] != trust.pinned.venue:
            raise ProtocolError("venue: the snapshot is another venue's")
        if manifest["history"] != trust.pinned.history:
            raise ProtocolError("history: the snapshot is of another log")

    def _try_later(self) -> None:
        self._retries += 1
        self._retry_at = monotonic() + min(_RETRY << min(self._retries - 1, 10), 60 * MINUTE)

    # --- /v1/events --------------------------------------------------------------------------------------

    def outbox(self, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """Events that the central does not have yet, as rows."""
        limit = min(whole(arguments, "limit", protocol.MAX_EVENTS), protocol.MAX_EVENTS)
        since = whole(arguments, "since", 0)
        return self._outbox(limit, since)

    def _outbox(self, limit: int, since: int) -> Steps:
        trust, d = self._trust, self._d
        if trust is None:
            yield {"enrolled": False}
            return
        last = max(since, d.ledger.acknowledged, trust.pinned.owed_from - 1)
        rows: list[bytes] = []
        if not self._drawing:  # else they would go out under an epoch that is about to be another
            rows = yield from self._until(partial(_rows, d.ledger, limit, last))
        yield {
            "enrolled": True,
            "nonce": trust.draw(monotonic(), protocol.EVENTS) if rows else None,
            "keys": list(trust.pinned.keys),
            "gateway": trust.pinned.gateway,
            "zone": d.gate.world.venue.timezone,
            "columns": EVENT_COLUMNS,
            "rows": orjson.Fragment(b"[" + b",".join(rows) + b"]"),
            "last_seq": d.ledger.last_seq,
            "acknowledged": d.ledger.acknowledged,
        }

    def uploaded(self, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """An answer to ``/v1/events``, as it came."""
        return self._to_the_end(self._guarded(self._uploaded(*_answered(arguments))))

    def _uploaded(self, type_: str, body: str, signature: str) -> Steps:
        trust, d = self._need(), self._d
        _, uploaded = yield from self._until(
            lambda: self._read(protocol.EVENTS, type_, body, signature, protocol.uploaded_of)
        )
        self._same(trust)
        trust.fresh(uploaded.said, monotonic(), protocol.EVENTS)
        self._learn(uploaded.said)
        self._acknowledged_at = uploaded.said.time
        now = d.gate.clock.read(wall(), monotonic(), synchronised=d.synchronised)
        for epoch, seq, reason in uploaded.refused:
            if d.ledger.epoch_of(seq) == epoch:
                d.ledger.refuse(seq, reason[:500])
                d.metrics.refused_events.inc()
        for epoch, first, last in uploaded.acknowledged:
            d.ledger.settle(epoch, first, last, now)
        conflict = self._conflict(uploaded)
        self._compare(uploaded.said)
        # What was settled is on disk before the courier asks for more, or it would get the same again.
        done = asyncio.Event()
        d.ledger.flushed(done.set)
        while not done.is_set() and d.ledger.failed is None:
            yield Later(_GLANCE)
        yield {"acknowledged": d.ledger.acknowledged, "refused": len(uploaded.refused), "conflict": conflict}

    def _conflict(self, uploaded: Uploaded) -> bool:
        """The central has another event of the same number: this ledger is an image of an older one, or has a
        twin. What is not acknowledged goes under a new epoch, and the snapshot says what was forgotten."""
        d = self._d
        if uploaded.conflict is None:
            return False
        epoch, seq = uploaded.conflict
        if d.ledger.epoch_of(seq) != epoch or seq <= d.ledger.acknowledged:
            return False
        self._log.error("the central has other events under our numbers: a new epoch begins", seq=seq)
        d.metrics.epoch_conflicts.inc()
        self._draw_epoch("the central has other events under these numbers", None)
        return True

    def _compare(self, said: Said) -> None:
        """What the central says it has, with what it should have."""
        ledger, pinned = self._d.ledger, self._need().pinned
        if said.have is None or said.time < self._acknowledged_at or not ledger.epochs or self._drawing:
            return
        epochs, last, mark = ledger.epochs, ledger.last_seq, ledger.acknowledged
        ends = [first - 1 for first, _ in epochs[1:]] + [last]
        for (first, epoch), end in zip(epochs, ends, strict=True):
            has = max(said.have.get(epoch, first - 1), first - 1, pinned.owed_from - 1)
            if has < min(end, mark):
                owed = ledger.outbox(1, has)  # what was refused or pruned is not owed
                if owed and owed[0][2] <= min(end, mark):
                    self._log.warning("the central has lost events: sent again", after=has, until=mark)
                    ledger.lower(has)
                    return
        first, epoch = epochs[-1]
        if said.have.get(epoch, 0) > last:
            self._log.error("the central has events that this ledger has not: it is an older image")
            self._draw_epoch("the ledger is an older image of itself", last)

    def _draw_epoch(self, reason: str, after: int | None) -> None:
        """``after``: the last number that keeps its epoch; None: the last that is acknowledged. What the
        ledger may have forgotten comes with the next snapshot."""
        trust, d = self._need(), self._d
        if self._drawing:
            return
        self._drawing = trust.pinned.want_snapshot = True

        def drawn() -> None:
            self._drawing = False
            now = self._need()  # another may have been pinned meanwhile
            now.pinned.new_epoch = False
            d.work(partial(write_durably, *now.save()))

        d.ledger.new_epoch(reason, drawn, after=after)

    _drawing = False

    # --- enrolment -----------------------------------------------------------------------------------

    def enrolled_call(self, arguments: Mapping[str, Any]) -> Iterator[Any]:
        """An administrator has enrolled this gateway: its central is pinned, and a new epoch begins."""
        return self._to_the_end(self._guarded(self._enrol(arguments)))

    def _enrol(self, arguments: Mapping[str, Any]) -> Steps:
        d = self._d
        pinned = pinned_from(dict(arguments))
        if pinned.gateway != d.config.gateway.id:
            raise CallError(
                "bad_request",
                f"the code is for the gateway {pinned.gateway!r}, and [gateway] id here is "
                f"{d.config.gateway.id!r}: change one of them",
            )
        while self._busy or self._busy_taking:  # what the central before is still about
            if self._building is not None:
                self._building.cancel()
            yield Later(_GLANCE)
        before = self._trust
        succeed(pinned, None if before is None else before.pinned, d.ledger.last_seq)
        pinned.new_epoch = True
        trust = Trust(d.config.gateway.data_dir, pinned, [] if before is None else before.obeyed)
        yield from self._keep(trust.save)
        self._trust = trust
        self._drop_candidate()
        self.fresh_at = self._heard_at = self._quick_at = self._forget = None
        self._forget_known = False
        self._acknowledged_at = self._retry_at = self._retries = 0
        self._pass_over_what_is_not_owed()
        self._draw_epoch("the gateway was enrolled", d.ledger.last_seq)
        self._log.info("joined a central", url=pinned.url, venue=pinned.venue)
        done = asyncio.Event()
        d.ledger.flushed(done.set)
        while not done.is_set() and d.ledger.failed is None:
            yield Later(_GLANCE)
        yield {"epoch": d.ledger.epoch}

    # --- helpers ---------------------------------------------------------------------------------------

    def close(self) -> None:
        """Nothing is gone on with from now on."""
        self._closed = True

    _closed = False

    def _same(self, trust: Trust) -> None:
        if trust is not self._trust:
            raise ProtocolError("this gateway was enrolled anew meanwhile")

    def _to_the_end(self, steps: Steps) -> Steps:
        """Where the client goes in the middle, the rest is done without it: half an answer is worse than
        none. What is on disk and what is in memory would be two things."""
        step = None
        try:
            for step in steps:
                yield step
        except GeneratorExit:
            if isinstance(step, Later) and not self._closed:
                self._go_on(steps)
            else:
                steps.close()
            raise

    def _go_on(self, steps: Steps) -> None:
        if self._closed:
            steps.close()
            return
        try:
            step = next(steps)
        except (StopIteration, CallError):
            return
        if isinstance(step, Later):
            asyncio.get_running_loop().call_later(max(step.seconds, _PAUSE), self._go_on, steps)
        else:
            steps.close()  # it is done, or asks for what nobody is there to give

    def _need(self) -> Trust:
        if self._trust is None:
            raise CallError("not_enrolled", NOT_ENROLLED)
        return self._trust

    def _until(self, do: Callable[[], T]) -> Generator[Any, None, T]:
        """Have something done in the thread, and wait for it in steps."""
        future: Future[T] = self._d.work(do)
        while not future.done():
            yield Later(_GLANCE)
        return future.result()

    def _keep(self, save: Callable[[], tuple[Any, bytes]]) -> Steps:
        """Written before it is acted upon. On a disk that cannot be written it is still acted upon: a
        revocation must not wait for a new card."""
        path, data = save()
        try:
            yield from self._until(lambda: write_durably(path, data))
        except OSError as error:
            self._log.error("cannot be written", file=str(path), reason=error.strerror)

    def _one_at_a_time(self, steps: Steps) -> Steps:
        """Of the answers to ``/v1/changes``: each follows on the one before."""
        if self._busy:
            raise CallError("busy", "another answer is being taken in")
        self._busy = True
        try:
            yield from self._guarded(steps)
        finally:
            self._busy = False

    def _guarded(self, steps: Steps) -> Steps:
        """A refusal is counted and told in words, and changes nothing."""
        try:
            yield from steps
        except ProtocolError as error:
            self._d.metrics.answers_refused.inc()
            self._log.warning("what the courier brought is refused", reason=str(error))
            raise CallError("refused", str(error)) from error
        except (SnapshotError, CodeKeyError) as error:
            raise CallError("not_applied", str(error)) from error


def _answered(arguments: Mapping[str, Any]) -> tuple[str, str, str]:
    return text(arguments, "type"), text(arguments, "body"), text(arguments, "signature")


def _unpacked(body: str) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("body: not BASE64") from None


def _manifest(body: Mapping[str, Any]) -> dict[str, Any]:
    """Checked, and as it is for the child process."""
    protocol.manifest_of(body)
    return {**body, "published": protocol.instant(body, "published")}


def kinds_of(records: Iterable[Any]) -> set[str]:
    """The kinds that stand in records, good or bad."""
    kinds = (record.get("kind") for record in records if isinstance(record, dict))
    return {kind for kind in kinds if isinstance(kind, str)}


def _discard(snapshot: Snapshot) -> None:
    """A generation that is not to be used, not even after the next start."""
    snapshot.close()
    generations.remove(snapshot.path)


def _rows(ledger: Ledger, limit: int, last: int) -> list[bytes]:
    """In the thread: events after this number as they are for the courier."""
    rows: list[bytes] = []
    while len(rows) < limit:
        found = ledger.outbox_json(min(_STEP, limit - len(rows)), last)
        if not found:
            break
        rows += [row for _, row in found]
        last = found[-1][0]
    return rows


def _result(task: asyncio.Task[received.Received]) -> received.Received:
    if task.cancelled():
        raise ProtocolError("the building of the snapshot was given up")
    return task.result()


def _perform(acts: Acts, command: Mapping[str, Any]) -> None:
    do = command["do"]
    if do == "open":
        acts.open(command)
    elif do in ("clear", "annul"):
        (acts.clear if do == "clear" else acts.annul)(command)
    else:
        acts.lane({"lane": command.get("lane"), "state": _STATES[do]})
