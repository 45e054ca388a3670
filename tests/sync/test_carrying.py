"""Changes to the gate and events to the central, between a real central and a real socket, whatever happens
on the way."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from gateway.sync import protocol
from gateway.sync.client import Limits
from gateway.sync.fetch import PART_FILE
from gateway.sync.worker import Pace
from tests.sync.central_rig import answering, bomb, endless, html, later, never
from tests.sync.conftest import QUICK, Rigs, carrying, until

SHORT = Limits(connect=0.3, read=0.3, upload=0.3, total=0.6, download=0.6)


def record(n: int) -> dict[str, Any]:
    return {"kind": "credential", "id": f"C{n}", "state": "lost"}


# --- changes -----------------------------------------------------------------------------------------


def test_a_change_reaches_the_gate_as_it_was_signed(rigs: Rigs) -> None:
    """Body and signature go through untouched; the request has nonce, keys, cursor and condition."""

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.central.held)
            rigs.do(rigs.central.change, record(1), record(2))
            await until(lambda: len(rigs.gate.records) == 2)

    asyncio.run(main())
    asked = rigs.central.requests[0]
    assert asked["query"]["cursor"] == "h1-0"
    assert asked["query"]["keys"] == "k1"
    assert asked["query"]["wait"] == str(QUICK.wait)
    condition = json.loads(base64.urlsafe_b64decode(asked["headers"]["Gateway-Condition"]))
    assert condition["version"] == "0"
    assert asked["headers"]["Gateway-Machine"] == "ab" * 32
    assert asked["headers"]["Accept-Encoding"] == "identity"
    assert rigs.gate.answers[0]["type"] == protocol.MSGPACK
    assert not rigs.gate.refusals


def test_a_condition_that_no_server_would_take_keeps_no_news_back(rigs: Rigs) -> None:
    """A header of more than 8,190 bytes is 400 for most servers; what a gate with very many readers says of
    itself stays at home, and the revocation comes."""
    rigs.gate.condition = {"readers_down": ["reader"] * 1000}

    async def main() -> None:
        async with carrying(rigs):
            rigs.do(rigs.central.change, record(1))
            await until(lambda: rigs.gate.records)

    asyncio.run(main())
    assert "Gateway-Condition" not in rigs.central.requests[0]["headers"]


def test_many_changes_come_without_a_pause(rigs: Rigs) -> None:
    """As long as the central has more, it is asked again at once, and nothing is left out."""
    rigs.do(rigs.central.change, *(record(n) for n in range(2000)))

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: len(rigs.gate.records) == 2000)

    asyncio.run(main())
    assert [r["id"] for r in rigs.gate.records] == [f"C{n}" for n in range(2000)]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (answering(429, "busy", Retry_After="0"), "429"),
        (answering(503, "busy"), "503"),
        (answering(500), "500"),
        (html, "not_protocol"),
        (bomb("gzip"), "encoded"),
        (bomb("br"), "encoded"),
        (endless, "too_large"),
        (never, "timeout"),
        (answering(302, "moved", Location="http://127.0.0.1:1/"), "redirect"),
    ],
    ids=["429", "503", "500", "html", "gzip", "br", "endless", "never", "redirect"],
)
def test_changes_arrive_after_any_fault(rigs: Rigs, fault: Any, kind: str) -> None:
    """Whatever the central or something before it answered: the gate sees none of it, and then the change."""
    rigs.central.faults["changes"].extend([fault] * 2)
    rigs.central.faults["events"].extend([fault] * 2)
    rigs.gate.last = 3
    rigs.do(rigs.central.change, record(1))

    async def main() -> None:
        async with carrying(rigs, limits=SHORT) as courier:
            await until(lambda: rigs.gate.records and rigs.gate.mark == 3)
            for call in ("changes", "events"):
                assert courier.count("gateway_sync_requests_total", call=call, result=kind) == 2

    asyncio.run(main())
    assert not rigs.gate.refusals
    assert rigs.central.arrived == [1, 2, 3]


def test_retry_after_is_waited_for(rigs: Rigs) -> None:
    """A central that asks for an hour of quiet is not asked again by that loop; the other goes on."""
    rigs.central.always["changes"] = answering(429, "slow_down", Retry_After="3600")

    async def main() -> None:
        async with carrying(rigs) as courier:
            await until(lambda: courier.count("gateway_sync_requests_total", call="changes", result="429"))
            for seq in range(1, 30):
                rigs.gate.last = seq
                await until(lambda seq=seq: rigs.gate.mark == seq)  # type: ignore[misc]

    asyncio.run(main())
    assert [r["call"] for r in rigs.central.requests].count("changes") == 1


def test_a_body_that_the_gate_refuses_makes_no_hot_loop(rigs: Rigs, logged: Callable[[], str]) -> None:
    """A forged answer is counted each time, told once, and asked for again with growing pauses."""
    rigs.gate.keys = {"k1": bytes(32)}
    rigs.central.hold = False

    async def main() -> None:
        async with carrying(rigs) as courier:
            refused = lambda: courier.count("gateway_sync_refused_total", call="changes")  # noqa: E731
            await until(lambda: refused() >= 5)
            assert len(rigs.gate.refusals) <= refused() + 1
            assert courier.count("gateway_sync_up") == 0

    asyncio.run(main())
    assert not rigs.gate.records
    assert logged().count("the gate refuses what the central says") == 1


def test_a_central_that_does_not_hold_requests_is_not_asked_all_the_time(rigs: Rigs) -> None:
    """Answers at once with nothing new are followed by a pause that grows."""
    rigs.central.hold = False

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: len(rigs.gate.answers) > 3)
            before = len(rigs.gate.answers)
            await asyncio.sleep(0.5)
            assert len(rigs.gate.answers) - before < 15

    asyncio.run(main())


def test_a_record_that_is_set_aside_again_and_again_makes_no_hot_loop(rigs: Rigs) -> None:
    """A bad record that comes with each answer, as of a key that the gate does not take, is not asked for
    without a pause."""
    rigs.central.hold = False
    rigs.gate.sets_aside = 1

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: len(rigs.gate.answers) > 3)
            before = len(rigs.gate.answers)
            await asyncio.sleep(0.5)
            assert len(rigs.gate.answers) - before < 15

    asyncio.run(main())


def test_a_revoked_gateway_keeps_no_cards(rigs: Rigs) -> None:
    """What was fetched of a snapshot goes when the gate hears that it is revoked, also in the middle of it:
    the file has every code."""
    rigs.central.use_snapshot(random.Random(1).randbytes(300_000), '"s1"')
    rigs.gate.want = {"at_least": None}
    rigs.central.cut_at = 1000

    async def main() -> None:
        async with carrying(rigs):
            part = rigs.state_dir / PART_FILE
            await until(lambda: part.exists() and part.stat().st_size > 5000)
            rigs.central.revoked = True
            rigs.do(rigs.central.change, record(1))
            await until(lambda: any(a.get("revoked") for a in rigs.gate.answers))
            await until(lambda: not list(rigs.state_dir.glob("snapshot*")))
            rigs.central.cut_at = None
            asked = len([r for r in rigs.central.requests if r["call"] == "changes"])
            await until(lambda: [r["call"] for r in rigs.central.requests].count("changes") > asked + 1)
            assert not list(rigs.state_dir.glob("snapshot*"))

    asyncio.run(main())
    assert not rigs.gate.files


def test_a_revoked_gateway_is_told_and_asks_rarely(rigs: Rigs, logged: Callable[[], str]) -> None:
    """The signed 403 reaches the gate; when the operator takes it back, changes come again."""
    rigs.central.revoked = True

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: any(a.get("revoked") for a in rigs.gate.answers))
            rigs.central.revoked = False
            rigs.do(rigs.central.change, record(1))
            await until(lambda: rigs.gate.records)

    asyncio.run(main())
    assert logged().count("the central has revoked this gateway") == 1


def test_a_token_that_is_worth_nothing(rigs: Rigs, logged: Callable[[], str]) -> None:
    """401 is told once, with what to do; when the gateway was enrolled again, it goes on by itself."""
    rigs.keep_token("some-other-token")
    rigs.gate.last = 1

    async def main() -> None:
        async with carrying(rigs) as courier:
            await until(
                lambda: courier.count("gateway_sync_requests_total", call="changes", result="401") >= 3
            )
            rigs.keep_token(rigs.central.tokens[0])
            await until(lambda: rigs.gate.mark == 1 and rigs.central.held)

    asyncio.run(main())
    text = logged()
    assert text.count("does not accept this gateway's token") == 1
    assert "gateway enroll URL CODE" in text
    assert "some-other-token" not in text


def test_it_waits_to_be_enrolled(rigs: Rigs, logged: Callable[[], str]) -> None:
    """Without a token, or with a gate that knows no central, nothing is asked; it is told once."""
    (rigs.state_dir / "token").unlink()
    rigs.gate.enrolled = False
    rigs.gate.last = 1

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.gate.calls.get("poll", 0) > 3)
            rigs.gate.enrolled = True
            await until(lambda: rigs.gate.calls["poll"] > 8)
            assert not rigs.central.requests
            rigs.keep_token(rigs.central.tokens[0])
            await until(lambda: rigs.gate.mark == 1)

    asyncio.run(main())
    assert logged().count("not enrolled yet") == 1


# --- events ------------------------------------------------------------------------------------------


def test_events_arrive_in_order_and_once(rigs: Rigs) -> None:
    """Thousands, in batches no larger than the protocol has them; what comes later follows by itself."""
    rigs.gate.last = 2500
    rigs.gate.damaged = {7}

    async def main() -> None:
        async with carrying(rigs) as courier:
            await until(lambda: rigs.gate.mark == 2500)
            rigs.gate.last = 2510
            await until(lambda: rigs.gate.mark == 2510)
            await until(lambda: courier.count("gateway_sync_backlog_events") == 0)
            assert courier.count("gateway_sync_events_total") == 2510

    asyncio.run(main())
    assert rigs.central.arrived == list(range(1, 2511))
    assert max(rigs.central.sizes) < protocol.MAX_UPLOAD
    assert rigs.central.events[7, 7] == {
        "gateway": "north", "epoch": 7, "seq": 7, "digest": None, "damaged": True
    }  # fmt: skip
    assert rigs.central.events[7, 8] == {
        "gateway": "north",
        "epoch": 7,
        "seq": 8,
        "digest": f"{8:016x}",
        "at": "2026-11-21T11:00:00.000008+01:00",
        "kind": "scan",
        "point": "north-in",
        "verdict": "granted",
        "flags": ["offline", "late"],
        "from": "outside",
    }


def test_poisoned_events_stop_no_other(rigs: Rigs, logged: Callable[[], str]) -> None:
    """Those that the central fails at are set aside at the gate with the reason; the rest arrives."""
    rigs.gate.last = 40
    rigs.central.poisoned = {1, 17, 18}

    async def main() -> None:
        async with carrying(rigs) as courier:
            await until(lambda: rigs.gate.mark == 40)
            assert courier.count("gateway_sync_set_aside_total") == 3

    asyncio.run(main())
    assert set(rigs.gate.aside) == {1, 17, 18}
    assert "500" in rigs.gate.aside[17]
    assert set(rigs.central.arrived) == set(range(1, 41)) - {1, 17, 18}
    assert logged().count("an event is set aside") == 3


def test_a_lost_answer_sends_the_batch_again(rigs: Rigs) -> None:
    """The central took it and the line broke: the same batch comes again and leaves one of each."""
    rigs.gate.last = 5
    rigs.gate.keys = {"k1": bytes(32)}  # its answers are lost on the gate, too

    async def main() -> None:
        async with carrying(rigs) as courier:
            await until(lambda: courier.count("gateway_sync_refused_total", call="events") >= 2)
            assert rigs.gate.mark == 0
            rigs.gate.keys = {"k1": base64.b64decode(rigs.central.public)}
            await until(lambda: rigs.gate.mark == 5)

    asyncio.run(main())
    assert rigs.central.arrived == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("slow", "other"), [("changes", "events"), ("events", "changes")])
def test_no_loop_waits_for_another(rigs: Rigs, slow: str, other: str) -> None:
    """While one call is never answered, and the snapshot is not either, the other call works as ever."""
    rigs.central.always[slow] = rigs.central.always["snapshot"] = never
    rigs.gate.want = {"at_least": None}

    async def main() -> None:
        async with carrying(rigs):
            await until(
                lambda: {"snapshot", slow} <= {r["call"] for r in rigs.central.requests} or slow == "events"
            )
            for n in range(1, 20):
                rigs.gate.last = n
                rigs.do(rigs.central.change, record(n))
                if other == "events":
                    await until(lambda n=n: rigs.gate.mark == n)  # type: ignore[misc]
                else:
                    await until(lambda n=n: len(rigs.gate.records) == n)  # type: ignore[misc]

    asyncio.run(main())


# --- the gate ----------------------------------------------------------------------------------------


def test_a_gate_that_restarts(rigs: Rigs, logged: Callable[[], str]) -> None:
    """While it is away nothing is lost, and when it is back everything goes on."""
    rigs.gate.last = 3

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.gate.mark == 3)
            for n in range(3):
                rigs.do(rigs.gate.stop)
                rigs.do(rigs.central.change, record(n))
                rigs.gate.last += 5
                await asyncio.sleep(0.1)
                rigs.on(rigs.gate.start())
                await until(lambda n=n: len(rigs.gate.records) == n + 1)  # type: ignore[misc]
                await until(lambda: rigs.gate.mark == rigs.gate.last)

    asyncio.run(main())
    assert rigs.central.arrived == list(range(1, 19))
    text = logged()
    assert 1 <= text.count("the gate does not answer") <= 3


def test_a_gate_that_hangs_is_given_up(rigs: Rigs) -> None:
    """A gate that takes calls and never answers costs a time-out; then it is asked anew."""
    rigs.gate.mute = True
    rigs.gate.last = 1

    async def main() -> None:
        async with carrying(rigs, gate_seconds=0.2):
            await until(lambda: rigs.gate.calls.get("poll", 0) > 2 and rigs.gate.calls.get("outbox", 0) > 2)
            rigs.gate.mute = False
            await until(lambda: rigs.gate.mark == 1 and rigs.central.held)

    asyncio.run(main())


# --- tokens ------------------------------------------------------------------------------------------


def test_a_renewed_token_is_kept_and_used(rigs: Rigs, logged: Callable[[], str]) -> None:
    """It is on disk with mode 0600 before its first use; no request comes with one that is used up, though
    events are on their way all the time; and no token is in the log."""
    names = [f"renewed-token-{n}-0123456789" for n in range(8)]
    rigs.central.always["events"] = later(0.02)

    async def main() -> None:
        async with carrying(rigs) as courier:
            for n, name in enumerate(names):
                rigs.central.renew_with = name
                rigs.do(rigs.central.change, record(n))
                while name not in {r["headers"]["Authorization"][7:] for r in rigs.central.requests}:
                    rigs.gate.last += 1
                    rigs.do(rigs.central.change, record(n))
                    await asyncio.sleep(0.01)
            await until(lambda: rigs.gate.mark == rigs.gate.last)
            for call in ("changes", "events"):
                assert not courier.count("gateway_sync_requests_total", call=call, result="401")

    asyncio.run(main())
    path = rigs.state_dir / "token"
    assert path.read_text() == names[-1]
    assert path.stat().st_mode & 0o777 == 0o600
    text = logged()
    assert not [name for name in [*names, "first-token"] if name in text]


def test_a_token_that_comes_with_a_forged_answer_is_not_kept(rigs: Rigs) -> None:
    """Only with an answer that the gate has verified."""
    rigs.gate.keys = {"k1": bytes(32)}
    rigs.central.hold = False
    rigs.central.renew_with = "renewed-token-0123456789"

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: len(rigs.gate.refusals) > 2)

    asyncio.run(main())
    assert (rigs.state_dir / "token").read_text().startswith("first-token")


def test_a_token_that_cannot_be_kept_is_not_used(rigs: Rigs, logged: Callable[[], str]) -> None:
    """A full disk: the old one is used on, and it is told."""
    (rigs.state_dir / ".token.part").mkdir()
    rigs.central.renew_with = "renewed-token-0123456789"
    rigs.gate.last = 1

    async def main() -> None:
        async with carrying(rigs):
            await until(lambda: rigs.central.held)
            rigs.do(rigs.central.change, record(0))
            await until(lambda: "renewed-token-0123456789" in rigs.central.tokens)
            for n in range(1, 5):
                rigs.do(rigs.central.change, record(n))
                await until(lambda n=n: len(rigs.gate.records) == n + 1)  # type: ignore[misc]

    asyncio.run(main())
    assert rigs.central.tokens[0].startswith("first-token")
    assert "cannot be kept" in logged()


def test_pauses_are_those_of_the_policy() -> None:
    """As they are by default: a connected gateway asks every 25 s, and one that must be enrolled again every
    few minutes."""
    pace = Pace()
    assert pace.wait == protocol.WAIT >= 20
    assert pace.slow_least >= 60
