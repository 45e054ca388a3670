"""The admin API as data: each operation once, from which both the routes and the document are made.

``Operation`` says what OpenAPI 3.1 says of an operation, as far as it is needed here; what all operations
have in common (the errors, the token) is added when the document is made.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gateway import __version__

Schema = dict[str, Any]

NDJSON = "application/x-ndjson"
CSV = "text/csv"
JSON = "application/json"
PREFIX = "/admin/v1"

_REFUSALS = {
    400: "The request breaks a rule; the sentence says which",
    401: "No token of this central",
    403: "The token's role may not do this",
    404: "There is no such thing",
    408: "The body did not come",
    409: "It contradicts what is there",
    413: "The body is too long",
    415: "The body is of another type, or packed",
    429: "Too many bad tokens; ask again after so many seconds",
}
_OF_BODIES = (408, 413, 415)


# --- schemas -----------------------------------------------------------------------------------------


def text(example: str, *, longest: int = 512, description: str = "") -> Schema:
    schema: Schema = {"type": "string", "minLength": 1, "maxLength": longest, "examples": [example]}
    return schema | ({"description": description} if description else {})


def word(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)}


def whole(least: int = 0, most: int = (1 << 63) - 1, description: str = "") -> Schema:
    schema: Schema = {"type": "integer", "minimum": least, "maximum": most}
    return schema | ({"description": description} if description else {})


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def many(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def thing(optional: Iterable[str] = (), /, **properties: Schema) -> Schema:
    """An object; all but these properties are always there. ``from_`` is the name ``from``."""
    named = {name.rstrip("_"): schema for name, schema in properties.items()}
    required = [name for name in named if name not in set(optional)]
    return {"type": "object", "properties": named} | ({"required": required} if required else {})


INSTANT: Schema = {
    "type": "string",
    "format": "date-time",
    "description": "RFC 3339 with an offset",
    "examples": ["2026-11-21T10:00:00+00:00"],
}
RECORD: Schema = {
    "type": "object",
    "required": ["kind"],
    "properties": {"kind": {"type": "string"}, "id": {"type": "string"}},
    "description": "A record of docs/admission.md. A credential's code is shown to the role admin only.",
}
ERROR = thing(error=text("there is no credential C9", longest=10_000), code=text("not_found", longest=40))


# --- operations --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """One call of the admin API."""

    method: str
    path: str
    """After ``/admin/v1``."""
    role: str | None
    """``read``, ``operate`` or ``admin``; None: no token is asked for."""
    handler: Callable[..., Awaitable[web.StreamResponse]]
    summary: str
    answer: Schema | None = None
    """None: the answer is a stream of ``types``, or has a schema of its own."""
    body: Schema | None = None
    """Of a JSON body."""
    lines: bool = False
    """The body is NDJSON."""
    query: Mapping[str, Schema] = field(default_factory=dict)
    status: int = 200
    types: tuple[str, ...] = (JSON,)
    conflicts: bool = False
    """Whether 409 is possible."""

    @property
    def id(self) -> str:
        return self.handler.__name__

    @property
    def names(self) -> list[str]:
        """The parts of the path that are given."""
        return re.findall(r"\{(\w+)\}", self.path)


_PARTS: dict[str, Schema] = {
    "venue": text("main", longest=200),
    "kind": word("area", "credential", "entitlement", "event", "holder", "product", "usage", "venue"),
    "id": text("C1"),
    "gateway": text("north", longest=200),
    "key": text("k1", longest=32),
    "name": text("till", longest=200),
}


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": _PARTS[name]} for name in operation.names
    ] + [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in operation.query.items()
    ]


def _responses(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {type_: {} for type_ in operation.types}
    if operation.answer is not None:
        content[JSON] = {"schema": operation.answer}
    found: dict[str, Any] = {str(operation.status): {"description": operation.summary, "content": content}}
    refusals = [400]
    if operation.role is not None:
        refusals += [401, 403, 429]
    if operation.names:
        refusals.append(404)
    if operation.body is not None or operation.lines:
        refusals += _OF_BODIES
    if operation.conflicts:
        refusals.append(409)
    for status in sorted(refusals):
        found[str(status)] = {"$ref": f"#/components/responses/{status}"}
    return found


def _described(operation: Operation) -> dict[str, Any]:
    said: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": _responses(operation),
    }
    if parameters := _parameters(operation):
        said["parameters"] = parameters
    if operation.body is not None:
        said["requestBody"] = {
            "required": bool(operation.body.get("required")),
            "content": {JSON: {"schema": operation.body}},
        }
    if operation.lines:
        said["requestBody"] = {
            "required": True,
            "description": "One record a line",
            "content": {NDJSON: {"schema": {"type": "string"}}},
        }
    if operation.role is None:
        said["security"] = []
    else:
        said["description"] = f"For the role {operation.role}" + (
            "." if operation.role == "admin" else " and those above it."
        )
    return said


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """The OpenAPI document of these operations."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _described(operation)
    refusals: dict[str, Any] = {}
    for status, description in _REFUSALS.items():
        refusals[str(status)] = {
            "description": description,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    refusals["429"]["headers"] = {"Retry-After": {"required": True, "schema": whole()}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Admin API of the reference central",
            "version": __version__,
            "description": "For operators and membership systems; docs/central-api.md is about it.",
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR},
            "responses": refusals,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }
