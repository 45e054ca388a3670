"""The tokens of those who operate the central, each with a role."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from gateway.central import schema, secret
from gateway.central.database import Database
from gateway.central.facts import TokenRow
from gateway.central.faults import NotFound, Refused
from gateway.central.gateways import check_name

ROLES = ("read", "operate", "admin")
_token = schema.admin_token.c


def create(db: Database, name: str, role: str, now: int) -> str:
    """Raises Refused where the name is taken, or the role is none."""
    check_name(name, "name")
    if role not in ROLES:
        raise Refused(f"role: must be one of {', '.join(ROLES)}")
    text = secret.admin_token()
    with db.write() as conn:
        if conn.execute(select(_token.name).where(_token.name == name)).first() is not None:
            raise Refused(f"there is a token {name} already; revoke it first, or choose another name")
        conn.execute(
            insert(schema.admin_token),
            [{"name": name, "hash": secret.digest(text), "role": role, "created_at": now}],
        )
    return text


def role_of(db: Database, token: str) -> tuple[str, str] | None:
    """(name, role)."""
    # Looked up by digest: how far a guess is right cannot be told from the time that this takes.
    with db.read() as conn:
        row = conn.execute(
            select(_token.name, _token.role).where(_token.hash == secret.digest(token))
        ).one_or_none()
    return None if row is None else (row.name, row.role)


def all_(db: Database) -> list[TokenRow]:
    with db.read() as conn:
        rows = conn.execute(select(_token.name, _token.role, _token.created_at).order_by(_token.name))
        return [TokenRow(row.name, row.role, row.created_at) for row in rows]


def revoke(db: Database, name: str) -> None:
    """Raises NotFound; Refused for the last one that may do everything."""
    with db.write() as conn:
        admins = list(conn.execute(select(_token.name).where(_token.role == "admin")).scalars())
        if admins == [name]:
            raise Refused("this is the last token with the role admin; create another one first")
        if conn.execute(delete(schema.admin_token).where(_token.name == name)).rowcount == 0:
            raise NotFound(f"there is no token {name}")
