"""The admin API: its routes made from its operations, and who may make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway import __version__
from gateway.central import officecalls, recordcalls
from gateway.central import web as http
from gateway.central.desk import Ask, may
from gateway.central.faults import NotFound, Refused
from gateway.central.openapi import PREFIX, Operation, document, text, thing, whole
from gateway.central.web import Failures, Handler, Refusal, answered

if TYPE_CHECKING:
    from gateway.central.server import Central


async def health(ask: Ask) -> web.Response:
    """Whether the central can serve: its store answers."""
    await ask.db(ask.central.store.venues)
    return answered(
        {
            "ok": True,
            "version": __version__,
            "gateways_connected": ask.central.connected(),
            "gateways_waiting": ask.central.polls.waiting(),
        }
    )


async def metrics(ask: Ask) -> web.Response:
    """For Prometheus."""
    return web.Response(
        body=generate_latest(ask.central.tally.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


async def openapi(ask: Ask) -> web.Response:
    return web.Response(body=_DOCUMENT, content_type="application/json")


OPERATIONS: tuple[Operation, ...] = (
    *recordcalls.OPERATIONS,
    *officecalls.OPERATIONS,
    Operation(
        "GET",
        "/health",
        None,
        health,
        "Whether the central can serve",
        thing(
            ok={"type": "boolean"},
            version=text("0.1.0"),
            gateways_connected=whole(),
            gateways_waiting=whole(),
        ),
    ),
    Operation("GET", "/openapi.json", None, openapi, "This document", {"type": "object"}),
)
_DOCUMENT = orjson.dumps(document(OPERATIONS))


def routes(central: Central) -> list[web.RouteDef]:
    """Every operation under /admin/v1, and what is asked for from outside: /health and /metrics."""
    failures = Failures(20, 60)
    made = [
        web.route(
            operation.method,
            PREFIX + operation.path,
            _guarded(central, operation, failures),
            allow_head=False,
        )
        if operation.method == "GET"
        else web.route(operation.method, PREFIX + operation.path, _guarded(central, operation, failures))
        for operation in OPERATIONS
    ]
    outside = (
        Operation("GET", "/health", None, health, "Whether the central can serve"),
        Operation("GET", "/metrics", "read", metrics, "What the central counts"),
    )
    return made + [web.get(each.path, _guarded(central, each, failures)) for each in outside]


def _guarded(central: Central, operation: Operation, failures: Failures) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        by, role = "", None
        if operation.role is not None:
            by, role = await _who(central, request, failures)
            if not may(role, operation.role):
                raise Refusal(
                    403, "forbidden", f"this needs the role {operation.role}; the token's is {role}"
                )
        if any("\0" in part for part in request.match_info.values()):
            raise Refusal(400, "bad_request", "no id has the character NUL")
        if unknown := set(request.query) - set(operation.query):
            # A filter that is mistyped must not be one that is not there.
            raise Refusal(400, "bad_request", f"there is no {sorted(unknown)[0][:40]} in this call's query")
        try:
            response = await operation.handler(Ask(request, central, by, role))
        except NotFound as error:
            raise Refusal(404, "not_found", str(error)) from None
        except Refused as error:
            raise Refusal(409, "refused", str(error)) from None
        if operation.method != "GET":
            central.log.info("admin", act=operation.id, by=by, **request.match_info)
        return response

    return handler


async def _who(central: Central, request: web.Request, failures: Failures) -> tuple[str, str]:
    """(name, role) of the token. Raises Refusal."""
    token, address = http.bearer(request), central.remote(request)
    if not token:
        raise Refusal(401, "bad_token", "say Authorization: Bearer and an admin token")
    found = await central.db(central.store.who, token)
    if found is None:
        if seconds := failures.wait(address):
            raise Refusal(429, "too_many", "too many bad tokens from this address", retry_after=seconds)
        failures.add(address)
        raise Refusal(401, "bad_token", "this central has no such admin token")
    return found
