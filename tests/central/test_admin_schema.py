"""The admin API against its own document, by schemathesis: whatever is asked, the answer is one described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import positive_data_acceptance
from schemathesis.specs.openapi.checks import ignored_auth

from gateway.central.admin import OPERATIONS
from gateway.central.openapi import NDJSON, document
from tests.central.server_rig import Server, card

schema = schemathesis.openapi.from_dict(document(OPERATIONS))

_RECORDS = ("load_records", "put_record")
"""Which records are good is said by docs/admission.md and not by the document."""


@schemathesis.serializer(NDJSON)
def _lines(_context: object, value: Any) -> bytes:
    return value.encode(errors="replace") if isinstance(value, str) else orjson.dumps(value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("central")) as server:
        server.put(card(1))
        yield server


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@schema.parametrize()
@settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_answers_are_those_described(
    case: schemathesis.Case, server: Server, session: requests.Session
) -> None:
    """No 5xx, no status, type or body that the document does not have, and nothing taken that it excludes."""
    # Without a token is tried in test_admin.py: here it would soon be 429, as it should.
    left_out = [ignored_auth]
    if case.operation.definition.raw["operationId"] in _RECORDS:
        left_out.append(positive_data_acceptance)
    headers = {"Authorization": f"Bearer {server.token}"}
    case.call_and_validate(base_url=server.url, headers=headers, excluded_checks=left_out, session=session)
