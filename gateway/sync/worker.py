"""The loops that carry news to the gate and events away from it. None waits for another.

The courier holds nothing: what it must not lose lies with the gate or the central, and it asks again. So a
gate or a central that is away, and a kill of this process at any moment, cost time and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from gateway import log
from gateway.host import wall
from gateway.sync import protocol
from gateway.sync.client import Answer, Central, NoAnswer
from gateway.sync.counts import Counts, Trouble
from gateway.sync.fetch import Fetch
from gateway.sync.link import Away, Link, Refused, in_thread
from gateway.sync.policy import Backoff, Event, Random, Uploads

EventJson = Callable[[Sequence[str], Sequence[Any], str, str], dict[str, Any]]
"""An event for the central: of column names, a row of the gate's (epoch, digest, columns), the gateway's id
and the name of its time zone."""

_FEW = 50
"""Events that are made into a request at once; more are milliseconds, and news are waiting for the loop."""
_ENVELOPE = 4096
"""Bytes of a request to /v1/events beside its events."""


@dataclass(frozen=True)
class Pace:
    """Seconds."""

    wait: int = protocol.WAIT
    """For which the central is to hold a request while nothing changes."""
    idle: float = 1.0
    """Between two looks for new events."""
    first: float = 1.0
    most: float = 30.0
    """Back-off from a central that fails or is away."""
    gate_first: float = 0.25
    gate_most: float = 5.0
    """From a gate that is away: it is on this machine, and back in a second or two."""
    slow_least: float = 60.0
    slow_first: float = 120.0
    slow_most: float = 600.0
    """Where somebody has to act: this gateway was revoked, or its token is worth nothing."""
    look: float = 2.0
    """Between two looks for what the one who acts will change: the token."""
    held: float = 5.0
    """A central that has nothing new should have held the request at least so long."""
    hurry: float = 0.5
    """At most, between two tries that look for the event to blame."""

    def central(self, random: Random) -> Backoff:
        return Backoff(random, first=self.first, most=self.most)

    def gate(self, random: Random) -> Backoff:
        return Backoff(random, first=self.gate_first, most=self.gate_most, least=self.gate_first / 5)

    def slow(self, random: Random) -> Backoff:
        return Backoff(random, first=self.slow_first, most=self.slow_most, least=self.slow_least)


class Changes:
    """``poll`` on the gate, ``GET /v1/changes``, ``answer`` to the gate: round and round."""

    def __init__(
        self, link: Link, central: Central, fetch: Fetch, counts: Counts, pace: Pace, random: Random
    ) -> None:
        self._link, self._central, self._fetch, self._counts = link, central, fetch, counts
        self._pace, self._random = pace, random
        self._trouble = Trouble(log.logger("sync"), "changes", counts.trouble)
        self._away = pace.gate(random)
        self._failed = pace.central(random)
        self._refused = pace.central(random)
        self._slow = pace.slow(random)
        self._empty = pace.central(random)
        self._cursor: str | None = None
        self._gone = False

    async def run(self) -> None:
        while True:
            await _sleep(await self.round(), self._central, self._pace)

    async def round(self) -> float:
        """One question and answer. Gives the seconds to wait before the next."""
        fetched = self._fetch.finished
        self._fetch.done.clear()
        try:
            news = await self._link.call("poll")
        except Away as error:
            self._counts.sync_up.set(0)
            self._trouble.say("gate", "the gate does not answer; it is asked again", reason=str(error))
            return self._away.next()
        except Refused as error:
            self._trouble.say("poll", "the gate refuses to be asked", reason=str(error))
            return self._slow.next()
        self._away.reset()
        if not news["enrolled"] or _token(self._central) is None:
            self._counts.sync_up.set(0)
            self._trouble.say(
                "enrol", "not enrolled yet; waiting for it", remedy="gateway enroll URL CODE, as root"
            )
            return self._pace.look
        keys = ",".join(news["keys"])
        self._fetch.want(news["snapshot"], keys, fetched)
        began = asyncio.get_running_loop().time()
        try:
            answer = await self._ask(news, keys)
        except NoAnswer as error:
            self._counts.sync_up.set(0)
            self._trouble.say(error.kind, str(error))
            return self._failed.next()
        if answer is None:  # a snapshot has come: the question is another one now
            return 0
        if answer.signature:
            quick = asyncio.get_running_loop().time() - began < self._pace.held
            return await self._hand_over(news, answer, quick)
        self._counts.sync_up.set(0)
        return self._unsigned(answer)

    async def _ask(self, news: Mapping[str, Any], keys: str) -> Answer | None:
        """None: given up, because a snapshot has come meanwhile and the gate asks for what follows it."""
        wait = self._pace.wait if news["wait"] else 0
        asking = asyncio.ensure_future(
            self._central.changes(news["nonce"], keys, news["cursor"], wait, news["condition"])
        )
        fetched = asyncio.ensure_future(self._fetch.done.wait())
        try:
            await asyncio.wait((asking, fetched), return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else None
        finally:
            for task in (asking, fetched):
                task.cancel()
            await asyncio.gather(asking, fetched, return_exceptions=True)

    async def _hand_over(self, news: Mapping[str, Any], answer: Answer, quick: bool) -> float:
        try:
            result = await self._link.call(
                "answer",
                type=answer.type,
                body=base64.b64encode(answer.body).decode(),
                signature=answer.signature,
            )
        except Away as error:
            self._trouble.say("gate", "the gate does not answer; it is asked again", reason=str(error))
            return self._away.next()
        except Refused as error:
            self._counts.sync_up.set(0)
            self._counts.refused.labels("changes").inc()
            self._trouble.say(
                f"refused {error.code}", "the gate refuses what the central says", reason=str(error)
            )
            return self._refused.next()
        await self._renew(answer)
        self._counts.sync_up.set(1)
        self._counts.last_success.set(wall() / 1e6)
        self._failed.reset()
        self._refused.reset()
        if result["revoked"]:
            self._fetch.forget()
            self._trouble.say("revoked", "the central has revoked this gateway", remedy="ask its operator")
            return self._slow.next()
        self._trouble.over()
        self._slow.reset()
        if result["gone"]:
            return await self._without_cursor()
        self._gone = False
        return self._held_back(news, result, quick)

    async def _renew(self, answer: Answer) -> None:
        token = answer.token
        if token is None or answer.status != 200:
            return
        try:
            await in_thread(lambda: self._central.tokens.renew(token))
        except OSError as error:
            self._trouble.say(
                "token",
                "the new token cannot be kept; the old one is used on",
                file=str(self._central.tokens.path),
                reason=error.strerror,
            )

    async def _without_cursor(self) -> float:
        """410: what helps is a snapshot, which the gate asks for in its next poll. Until one has come there
        is little to ask for."""
        before, self._gone = self._gone, True
        if before:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._fetch.done.wait(), self._pace.wait * (0.8 + 0.4 * self._random())
                )
        return 0

    def _held_back(self, news: Mapping[str, Any], result: Mapping[str, Any], quick: bool) -> float:
        """A central that answers at once with nothing, again and again, is not asked without a pause."""
        same, self._cursor = news["cursor"] == self._cursor, news["cursor"]
        # What is set aside counts for nothing: the cursor goes on past a bad record, but not past a bad key.
        nothing = not (result["changed"] or result["commands"] or result["more"])
        if same and nothing and quick:
            return self._empty.next()
        self._empty.reset()
        return 0

    def _unsigned(self, answer: Answer) -> float:
        if answer.status in (401, 403):
            self._trouble.say(
                f"{answer.status} {answer.code}",
                "the central does not accept this gateway's token",
                status=answer.status,
                code=answer.code,
                remedy="have a code made for this gateway, then: gateway enroll URL CODE",
            )
            return self._slow.next()
        self._trouble.say(str(answer.status), "the central fails", status=answer.status, code=answer.code)
        wait = self._failed.next()
        return wait if answer.retry_after is None else answer.retry_after + self._random()


class _Page(NamedTuple):
    """A request to ``/v1/events``."""

    body: bytes
    sent: list[Event]
    last_seq: int
    """The newest event that the gate had when it was asked."""


class Sending:
    """``outbox`` on the gate, ``POST /v1/events``, ``uploaded`` to the gate: round and round.

    While the central has a batch, the gate is asked for the next one; and while it has that, the gate gets
    the answer to the one before. A batch is never sent before the central has taken what stands before it.
    """

    def __init__(
        self, link: Link, central: Central, event: EventJson, counts: Counts, pace: Pace, random: Random
    ) -> None:
        self._link, self._central, self._event, self._counts = link, central, event, counts
        self._pace, self._random = pace, random
        self._trouble = Trouble(log.logger("sync"), "events", counts.trouble)
        self._uploads = Uploads()
        self._away = pace.gate(random)
        self._failed = pace.central(random)
        self._slow = pace.slow(random)
        self._ahead: asyncio.Task[_Page | None] | None = None
        """What follows the batch that the central has."""
        self._telling: asyncio.Task[float | None] | None = None
        """An answer that is on its way to the gate."""

    async def run(self) -> None:
        try:
            while True:
                await _sleep(await self.round(), self._central, self._pace)
        finally:
            _give_up(self._ahead)
            _give_up(self._telling)

    async def round(self) -> float:
        """One batch. Gives the seconds to wait before the next."""
        try:
            if self._ahead is None and (wait := await self._told()) is not None:
                return wait
            return await self._send()
        except Away:  # said by the loop of the changes, which meets the same
            return self._away.next()
        except Refused as error:
            self._trouble.say(f"refused {error.code}", "the gate refuses a call", reason=str(error))
            self._uploads.no_answer()
            return self._failed.next()

    async def _send(self) -> float:
        ask = self._uploads.ask()
        ahead, self._ahead = self._ahead, None
        page = await (self._page(ask.most, ask.since) if ahead is None else ahead)
        if page is None:
            return self._pace.look
        self._away.reset()
        sent = page.sent
        if not sent:
            self._uploads.nothing()
            if ask.since is not None:
                return self._failed.next()
            self._counts.backlog.set(0)
            return self._pace.idle
        following = None
        if ask.since is None:
            self._counts.backlog.set(page.last_seq - sent[0].seq + 1)
            if sent[-1].seq < page.last_seq:
                following = asyncio.ensure_future(self._page(ask.most, sent[-1].seq))
        try:
            return await self._exchange(page, following)
        finally:
            if self._ahead is not following:
                _give_up(following)

    async def _exchange(self, page: _Page, following: asyncio.Task[_Page | None] | None) -> float:
        try:
            answer = await self._central.events(page.body)
        except NoAnswer as error:
            self._trouble.say(error.kind, str(error))
            self._uploads.no_answer(slow=error.kind == "timeout")
            return self._failed.next()
        if (wait := await self._told()) is not None:
            return wait
        if not answer.signature:
            return await self._unsigned(answer, page.sent)
        self._telling = asyncio.ensure_future(self._tell(answer, page.sent))
        if following is not None and _took_all(answer, page.sent):
            # What the gate makes of it changes nothing about what comes next, so that is not waited for.
            self._uploads.taken(page.sent)
            self._ahead = following
            return 0
        if (wait := await self._told()) is not None:
            return wait
        self._uploads.taken(page.sent)
        if self._uploads.ask().since is not None or page.sent[-1].seq < page.last_seq:
            return 0
        self._trouble.over()
        self._counts.backlog.set(0)
        return self._pace.idle

    async def _page(self, most: int, since: int | None) -> _Page | None:
        """What the gate has to send; None before this gateway is enrolled."""
        box = await self._link.call("outbox", limit=most, since=since)
        if not box["enrolled"] or _token(self._central) is None:
            return None
        if len(box["rows"]) <= _FEW:
            return _Page(*self._batch(box), box["last_seq"])
        return _Page(*await in_thread(lambda: self._batch(box)), box["last_seq"])

    def _batch(self, box: Mapping[str, Any]) -> tuple[bytes, list[Event]]:
        """The request's body, no longer than the protocol has it, and what is in it."""
        columns, gateway, zone = box["columns"], box["gateway"], box["zone"]
        parts: list[bytes] = []
        sent: list[Event] = []
        size = _ENVELOPE
        for row in box["rows"]:
            if row[0] is None:  # its epoch is not on disk yet
                break
            event = self._event(columns, row, gateway, zone)
            part = orjson.dumps(event)
            size += len(part) + 1
            if sent and size > protocol.MAX_UPLOAD:
                break
            parts.append(part)
            sent.append(Event(event["epoch"], event["seq"]))
        head = orjson.dumps({"gateway": gateway, "nonce": box["nonce"], "keys": box["keys"]})
        return head[:-1] + b',"events":[' + b",".join(parts) + b"]}", sent

    async def _told(self) -> float | None:
        """The gate has the answer that was on its way to it; gives the seconds to wait where it, or what is
        in it, leaves something to be sent again. Raises Away."""
        telling, self._telling = self._telling, None
        return None if telling is None else await telling

    async def _tell(self, answer: Answer, sent: Sequence[Event]) -> float | None:
        try:
            result = await self._link.call(
                "uploaded",
                type=answer.type,
                body=base64.b64encode(answer.body).decode(),
                signature=answer.signature,
            )
        except Refused as error:
            self._counts.refused.labels("events").inc()
            self._trouble.say(
                f"refused {error.code}", "the gate refuses what the central says", reason=str(error)
            )
            self._uploads.no_answer()
            return self._failed.next()
        self._counts.last_success.set(wall() / 1e6)
        settled = _settled(answer, sent)
        self._counts.events.inc(settled)
        if result["conflict"]:  # the gate numbers anew; a second one in a row waits
            return self._failed.next()
        if not settled:
            self._trouble.say("takes nothing", "the central answers and takes none of the events")
            self._uploads.no_answer()
            return self._failed.next()
        self._failed.reset()
        self._slow.reset()
        return None

    async def _unsigned(self, answer: Answer, sent: list[Event]) -> float:
        status = answer.status
        if status in (401, 403):  # said by the loop of the changes
            self._uploads.no_answer()
            return self._slow.next()
        self._trouble.say(str(status), "the central fails", status=status, code=answer.code)
        wait = self._failed.next()
        if answer.retry_after is not None:
            wait = answer.retry_after + self._random()
        if status in (400, 413, 422) or (status >= 500 and status != 503):
            blamed = self._uploads.refused(sent, too_large=status == 413)
            if blamed is not None:
                await self._set_aside(blamed, status)
            if answer.retry_after is None and not self._uploads.ask().calm:
                return self._random() * self._pace.hurry
        else:
            self._uploads.no_answer()
        return wait

    async def _set_aside(self, event: Event, status: int) -> None:
        reason = f"the central answers {status} to this event, again and again, and takes others"
        self._counts.set_aside.inc()
        log.logger("sync").error(
            "an event is set aside: the central fails at it and takes others",
            seq=event.seq,
            status=status,
            remedy="gateway ledger --refused shows it; tell the central's operator",
        )
        await self._link.call("refuse", epoch=event.epoch, seq=event.seq, reason=reason)


def _give_up(task: asyncio.Task[Any] | None) -> None:
    """Nobody waits for it any more, whatever becomes of it."""
    if task is not None:
        task.cancel()
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _took_all(answer: Answer, sent: Sequence[Event]) -> bool:
    """Whether it says so; nobody has verified it yet."""
    try:
        said = protocol.uploaded_of(protocol.decode(answer.body, answer.type))
    except protocol.ProtocolError:
        return False
    return said.conflict is None and _settled_by(said, sent) == len(sent)


def _settled(answer: Answer, sent: Sequence[Event]) -> int:
    """How many of them the central says to have, or to refuse by name; the gate has verified the answer."""
    return _settled_by(protocol.uploaded_of(protocol.decode(answer.body, answer.type)), sent)


def _settled_by(said: protocol.Uploaded, sent: Sequence[Event]) -> int:
    settled = {Event(epoch, seq) for epoch, seq, _ in said.refused}.intersection(sent)
    seqs = [event.seq for event in sent]
    for epoch, first, last in said.acknowledged:
        among = sent[bisect_left(seqs, first) : bisect_right(seqs, last)]
        settled.update(event for event in among if event.epoch == epoch)
    return len(settled)


def _token(central: Central) -> str | None:
    try:
        return central.tokens.read()
    except OSError:
        return None


async def _sleep(seconds: float, central: Central, pace: Pace) -> None:
    """Shorter where meanwhile a token appears or changes: somebody has enrolled the gateway."""
    if seconds <= pace.look:
        await asyncio.sleep(max(0.0, seconds))
        return
    loop = asyncio.get_running_loop()
    until, before = loop.time() + seconds, _token(central)
    while (left := until - loop.time()) > 0 and _token(central) == before:  # noqa: ASYNC110
        await asyncio.sleep(min(left, pace.look))
