"""The central's tables. One schema for SQLite and PostgreSQL: texts, whole numbers and booleans only.

Instants are microseconds since 1970. ``venue.position`` is the last place given in its log; whoever writes to
a log holds the lock on that row (see ``log``).
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, Table, Text

metadata = MetaData()

# sqlite_with_rowid=False: what is reached by its key needs no second tree of row numbers in SQLite.

venue = Table(
    "venue",
    metadata,
    Column("id", Text, primary_key=True),
    Column("names", Boolean, nullable=False),
    Column("history", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("oldest", BigInteger, nullable=False),  # deletions up to here are no longer kept
    Column("forget_position", BigInteger),  # the newest deletion of a holder
    Column("forget_at", BigInteger),
)

run = Table(  # which stretches of a log were written by one uninterrupted run of the central; see log.Cursors
    "run",
    metadata,
    Column("venue", Text, primary_key=True),
    Column("start", BigInteger, primary_key=True),
    Column("id", Text, nullable=False),
    sqlite_with_rowid=False,
)

record = Table(
    "record",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("body", Text),  # null: deleted
    Column("changed_at", BigInteger, nullable=False),
    Column("by", Text, nullable=False),
    sqlite_with_rowid=False,
)

history = Table(  # versions that were replaced; the present one is in ``record``
    "history",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("body", Text),
    Column("changed_at", BigInteger, nullable=False),
    Column("by", Text, nullable=False),
    Index("history_of", "kind", "id", "number"),
)

change = (
    Table(  # a venue's log, each record once, at its newest place; not deleted: the venue sees the record
        "change",
        metadata,
        Column("venue", Text, primary_key=True),
        Column("kind", Text, primary_key=True),
        Column("id", Text, primary_key=True),
        Column("position", BigInteger, nullable=False),
        Column("deleted", Boolean, nullable=False),
        Column("at", BigInteger, nullable=False),
        Column("body", Text),  # of what is not in ``record``: gateways' usage, commands, keys
        Column("gateway", Text),  # of commands: nobody else is told
        Column("until", BigInteger),  # of commands: when they expire
        Index("change_in_order", "venue", "position", unique=True),
        sqlite_with_rowid=False,
    )
)

code = Table(
    "code",
    metadata,
    Column("code", Text, primary_key=True),
    Column("credential", Text, nullable=False),
    sqlite_with_rowid=False,
)

link = Table(  # what points to a record: credentials to an entitlement, entitlements to a holder
    "link",
    metadata,
    Column("to_kind", Text, primary_key=True),
    Column("to_id", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    sqlite_with_rowid=False,
)

gateway = Table(
    "gateway",
    metadata,
    Column("id", Text, primary_key=True),
    Column("venue", Text, nullable=False),
    Column("machine", Text),
    Column("hostname", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("enrolled_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("given", BigInteger, nullable=False),  # the number of the newest token
    Column("used", BigInteger, nullable=False),  # of the newest that came; older ones are used up
    Column("void", BigInteger, nullable=False),  # tokens up to here ended with an enrolment or by hand
    Column("given_at", BigInteger, nullable=False),
    Column("used_given_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger),
    Column("condition", Text),
)

gateway_token = Table(
    "gateway_token",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("gateway", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("given_at", BigInteger, nullable=False),
)

enrolment = Table(
    "enrolment",
    metadata,
    Column("hash", Text, primary_key=True),
    Column("gateway", Text, nullable=False),
    Column("venue", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    Column("by", Text, nullable=False),
    Column("machine", Text),  # that used it
    Column("token", BigInteger),  # the number of the token that it gave last
)

admin_token = Table(
    "admin_token",
    metadata,
    Column("name", Text, primary_key=True),
    Column("hash", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

key = Table(
    "key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("public", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

counter = Table(  # the last number given to an event or a conflict; its row is the lock
    "counter",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

event = Table(
    "event",
    metadata,
    Column("gateway", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("digest", Text),  # null: damaged
    Column("number", BigInteger, nullable=False),
    Column("venue", Text, nullable=False),
    Column("at", BigInteger),
    Column("kind", Text),
    Column("verdict", Text),
    Column("point", Text),
    Column("credential", Text),
    Column("person", Text),  # the holder, else "card:" and the credential
    # Of what moves somebody (a grant, a lane opened by hand, a passage without either): how that stands.
    Column("passage", Text),
    Column("from_area", Text),
    Column("to_area", Text),
    Column("guest", BigInteger, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index("event_in_order", "number", "at"),
    Index("event_of_person", "person", "at"),
    Index("event_of_credential", "credential", "at"),
    Index("event_of_kind", "kind", "at"),
    sqlite_with_rowid=False,
)

epoch = Table(
    "epoch",
    metadata,
    Column("gateway", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),  # of its first event
)

conflict = Table(
    "conflict",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False, unique=True),  # what makes it the same one
    Column("at", BigInteger, nullable=False),
    Column("venue", Text, nullable=False),
    Column("gateways", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("noted_at", BigInteger, nullable=False),
)
