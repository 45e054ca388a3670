"""Gateways at the central: how they join, prove who they are, and what they say of themselves."""

from __future__ import annotations

import re
from typing import Any

import orjson
from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update

from gateway.central import conflicts, schema, secret
from gateway.central.facts import Enrolled, GatewayRow
from gateway.central.faults import EnrolError, NotFound, Refused, TokenError
from gateway.central.log import Log
from gateway.model import SECOND
from gateway.sync.protocol import MACHINE

RENEWED_AFTER = 86_400 * SECOND
OFFERED_AGAIN_AFTER = 3600 * SECOND
"""A new token that was not used: its answer was lost, or the gateway could not keep it."""
TOKENS_KEPT = 400 * 86_400 * SECOND
SEEN_WRITTEN_EVERY = 60 * SECOND
LONGEST_CONDITION = 8192
LONGEST_NAME = 200
_GATEWAY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
"""As gateways take it in their configuration: a code for another could be used by nobody."""

_gateway, _token, _enrolment = schema.gateway.c, schema.gateway_token.c, schema.enrolment.c
_BY_ID = select(schema.gateway).where(_gateway.id == bindparam("gateway"))
_BY_TOKEN = select(schema.gateway, _token.number).join(
    schema.gateway_token, _token.gateway == _gateway.id
).where(_token.hash == bindparam("hash"))  # fmt: skip


class Gateways:
    """Enrolment, tokens, and the last condition of each gateway, which is written once a minute."""

    def __init__(self, log: Log, tokens: secret.TokenMaker) -> None:
        self._log = log
        self._tokens = tokens
        self._seen: dict[str, tuple[int, dict[str, Any] | None]] = {}
        self._unwritten: set[str] = set()
        self._written_at = 0

    # --- joining -----------------------------------------------------------------------------------------

    def enrolment_code(self, gateway: str, venue: str, *, ttl_s: int, by: str) -> str:
        """A one-time code, worth something for so many seconds. Raises NotFound and Refused."""
        if not _GATEWAY_ID.fullmatch(gateway):
            raise Refused(
                "gateway: must be 1 to 64 of the letters A to Z, digits, - and _, as its [gateway] id"
            )
        if ttl_s <= 0:
            raise Refused("ttl_s: must be positive")
        code = secret.enrolment_code()
        with self._log.turn() as turn:
            self._log.venue(turn.conn, venue)
            turn.conn.execute(
                delete(schema.enrolment).where(_enrolment.expires_at < turn.now - RENEWED_AFTER)
            )
            turn.conn.execute(
                insert(schema.enrolment),
                [
                    {
                        "hash": secret.enrolment_digest(code),
                        "gateway": gateway,
                        "venue": venue,
                        "expires_at": turn.now + ttl_s * SECOND,
                        "made_at": turn.now,
                        "by": by,
                    }
                ],
            )
        return code

    def enrol(self, code: str, machine: str, hostname: str, version: str) -> Enrolled:
        """Joins a gateway; the instance before ends. Raises EnrolError."""
        if not MACHINE.fullmatch(machine):
            raise EnrolError("machine: must be 64 hex digits")
        hash_ = secret.enrolment_digest(code)
        with self._log.turn() as turn:
            conn, now = turn.conn, turn.now
            row = conn.execute(select(schema.enrolment).where(_enrolment.hash == hash_)).one_or_none()
            if row is None or row.expires_at <= now:
                raise EnrolError("this enrolment code is unknown or has expired; make a new one")
            there = conn.execute(_BY_ID, {"gateway": row.gateway}).one_or_none()
            if row.machine is not None and (
                row.machine != machine or there is None or there.used >= row.token or there.given != row.token
            ):
                raise EnrolError("this enrolment code was used; make a new one")
            number = (0 if there is None else there.given) + 1
            token = self._give(conn, row.gateway, number, machine, now)
            columns = {
                "venue": row.venue,
                "machine": machine,
                "hostname": hostname[:LONGEST_NAME].replace("\0", ""),
                "version": version[:LONGEST_NAME].replace("\0", ""),
                "enrolled_at": now,
                "revoked_at": None,
                "given": number,
                "void": number - 1,
                "given_at": now,
                "used_given_at": now,
            }
            if there is None:
                conn.execute(insert(schema.gateway), [columns | {"id": row.gateway, "used": 0}])
            else:
                conn.execute(update(schema.gateway).where(_gateway.id == row.gateway).values(columns))
                turn.tell(there.venue, row.gateway)
            conn.execute(
                update(schema.enrolment).where(_enrolment.hash == hash_).values(machine=machine, token=number)
            )
        return Enrolled(row.gateway, row.venue, token)

    def _give(self, conn: Connection, gateway: str, number: int, machine: str, now: int) -> str:
        token = self._tokens.make(gateway, number, machine)
        conn.execute(
            insert(schema.gateway_token),
            [{"hash": secret.digest(token), "gateway": gateway, "number": number, "given_at": now}],
        )
        return token

    # --- tokens ------------------------------------------------------------------------------------------

    def authenticate(self, token: str, machine: str) -> GatewayRow:
        """Whose token this is; the older ones are used up from its first use on. Raises TokenError."""
        hash_ = secret.digest(token)
        with self._log.db.read() as conn:
            row = conn.execute(_BY_TOKEN, {"hash": hash_}).one_or_none()
        if row is None:
            return self._from_before_restoring(token, hash_, machine)
        if row.number <= row.void:
            if machine != row.machine:
                self._two_instances(row, machine, "an instance that a later enrolment ended came back")
            raise TokenError("bad_token", "this token ended with a later enrolment, or by the operator")
        if machine != row.machine:
            self._two_instances(
                row, machine, "the token came from another computer than the one that enrolled"
            )
            raise TokenError("other_machine", "this token belongs to another computer: the card was copied")
        if row.number < row.used:
            self._two_instances(row, machine, "a token came that was used up")
            raise TokenError("token_used_up", "this token was replaced by one that has been used since")
        if row.number > row.used:
            with self._log.turn() as turn:
                turn.conn.execute(
                    update(schema.gateway)
                    .where(_gateway.id == row.id, _gateway.used < row.number)
                    .values(
                        used=row.number,
                        used_given_at=select(_token.given_at).where(_token.hash == hash_).scalar_subquery(),
                    )
                )
        return self._row(row)

    def _from_before_restoring(self, token: str, hash_: str, machine: str) -> GatewayRow:
        """A token that is not known here: perhaps it was given after the backup that this central is from."""
        found = self._tokens.genuine(token, machine)
        bad = TokenError("bad_token", "this token is not known here; enrol the gateway again")
        if found is None:
            raise bad
        gateway, number = found
        with self._log.turn() as turn:
            row = turn.conn.execute(_BY_ID, {"gateway": gateway}).one_or_none()
            if row is None or number <= row.given:
                raise bad
            turn.conn.execute(
                insert(schema.gateway_token),
                [{"hash": hash_, "gateway": gateway, "number": number, "given_at": turn.now}],
            )
            turn.conn.execute(
                update(schema.gateway)
                .where(_gateway.id == gateway)
                .values(machine=machine, given=number, used=number, given_at=turn.now, used_given_at=turn.now)
            )
            row = turn.conn.execute(_BY_ID, {"gateway": gateway}).one()
        return self._row(row)

    def _two_instances(self, row: Row[Any], machine: str, why: str) -> None:
        conflicts.note_instance(self._log, row.venue, row.id, machine, why)

    def renew_token(self, gateway: str) -> str | None:
        """A new token, if the one in use is a day old; the old one holds until the new one was used."""
        now = self._log.clock()
        with self._log.db.read() as conn:
            row = self._known(conn, gateway)
            if not self._is_due(row, now):
                return None
        with self._log.turn() as turn:
            row = self._known(turn.conn, gateway)
            if not self._is_due(row, turn.now):
                return None
            return self._next(turn.conn, row, turn.now)

    def _is_due(self, row: Row[Any], now: int) -> bool:
        if row.machine is None or row.revoked_at is not None or now - row.used_given_at < RENEWED_AFTER:
            return False
        return bool(row.given == row.used or now - row.given_at >= OFFERED_AGAIN_AFTER)

    def hasten_renewal(self, gateway: str) -> None:
        """A new token comes with the gateway's next answer, not only when a day is over. Raises NotFound and
        Refused."""
        with self._log.turn() as turn:
            row = self._known(turn.conn, gateway)
            if row.machine is None:
                raise Refused(f"the gateway {gateway} has not been enrolled")
            turn.conn.execute(
                update(schema.gateway).where(_gateway.id == gateway).values(given_at=0, used_given_at=0)
            )
            turn.tell(row.venue, gateway)

    def rotate_token(self, gateway: str) -> str:
        """A new token by hand; those before are worth nothing at once. Raises NotFound and Refused."""
        with self._log.turn() as turn:
            row = self._known(turn.conn, gateway)
            if row.machine is None:
                raise Refused(f"the gateway {gateway} has not been enrolled")
            turn.conn.execute(update(schema.gateway).where(_gateway.id == gateway).values(void=row.given))
            turn.tell(row.venue, gateway)
            return self._next(turn.conn, row, turn.now)

    def _next(self, conn: Connection, row: Row[Any], now: int) -> str:
        conn.execute(
            update(schema.gateway).where(_gateway.id == row.id).values(given=row.given + 1, given_at=now)
        )
        return self._give(conn, row.id, row.given + 1, row.machine, now)

    def revoke(self, gateway: str) -> None:
        """It is told to wipe its snapshot, and nothing else, from now on. Raises NotFound."""
        with self._log.turn() as turn:
            row = self._known(turn.conn, gateway)
            turn.conn.execute(
                update(schema.gateway)
                .where(_gateway.id == gateway, _gateway.revoked_at.is_(None))
                .values(revoked_at=turn.now)
            )
            turn.tell(row.venue, gateway)

    # --- what they say -----------------------------------------------------------------------------------

    def seen(self, gateway: str, condition: dict[str, Any] | None) -> None:
        """Notes that a gateway has called, and how it says it is (None: it did not say)."""
        now = self._log.clock()
        if condition is None or len(orjson.dumps(condition)) > LONGEST_CONDITION:
            condition = self._seen[gateway][1] if gateway in self._seen else None
        self._seen[gateway] = now, condition
        self._unwritten.add(gateway)
        if now - self._written_at >= SEEN_WRITTEN_EVERY:
            self.write_seen()

    def write_seen(self) -> None:
        """Writes what is only in memory; the disk is spared a flush for every call of every gateway."""
        self._written_at = self._log.clock()
        rows = []
        for gateway in self._unwritten:
            at, condition = self._seen[gateway]
            text = None if condition is None else orjson.dumps(condition).decode()
            rows.append({"g": gateway, "at": at, "text": text})
        self._unwritten = set()
        if rows:
            with self._log.db.write() as conn:
                conn.execute(_SEEN, rows)

    def get(self, conn: Connection, gateway: str) -> GatewayRow:
        """Raises NotFound."""
        return self._row(self._known(conn, gateway))

    def all(self) -> list[GatewayRow]:
        with self._log.db.read() as conn:
            return [self._row(row) for row in conn.execute(select(schema.gateway).order_by(_gateway.id))]

    def _known(self, conn: Connection, gateway: str) -> Row[Any]:
        row = conn.execute(_BY_ID, {"gateway": gateway}).one_or_none()
        if row is None:
            raise NotFound(f"there is no gateway {gateway}")
        return row

    def _row(self, row: Row[Any]) -> GatewayRow:
        at, condition = row.seen_at, None if row.condition is None else orjson.loads(row.condition)
        if row.id in self._seen:
            at, said = self._seen[row.id]
            condition = condition if said is None else said
        version = condition.get("version") if condition else None
        return GatewayRow(
            row.id,
            row.venue,
            row.revoked_at is not None,
            row.machine,
            row.hostname,
            version if isinstance(version, str) else row.version,
            row.enrolled_at,
            at,
            condition,
        )

    def forget_old_tokens(self) -> None:
        with self._log.db.write() as conn:
            conn.execute(
                delete(schema.gateway_token).where(_token.given_at < self._log.clock() - TOKENS_KEPT)
            )


_SEEN = (
    update(schema.gateway)
    .where(_gateway.id == bindparam("g"))
    .values(seen_at=bindparam("at"), condition=bindparam("text"))
)


def check_name(value: str, what: str) -> None:
    """The id of a venue or a gateway. Raises Refused."""
    if not 0 < len(value) <= LONGEST_NAME or not value.isprintable():
        raise Refused(f"{what}: must be 1 to {LONGEST_NAME} characters without control characters")
