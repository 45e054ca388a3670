"""Two hundred gateways at once, and a stop while they wait."""

from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from gateway.central.run import running
from gateway.central.store import Store
from gateway.sync import protocol
from tests.central.server_rig import Log, card

_MANY = 200


class _Gates:
    """Many gateways that have joined, in one loop with the central."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        store = Store.open(directory)
        self.machine = secrets.token_hex(32)
        codes = [store.enrolment_code(f"g{number}", "main", ttl_s=3600, by="test") for number in range(_MANY)]
        self.tokens = [store.enrol(code, self.machine, "", "").token for code in codes]
        self.keys = {key["id"]: protocol.public_bytes(key["public"]) for key in store.keys.public()}
        self.cursor = store.cursor("main", store.log("main")[1])
        store.close()

    async def poll(self, session: aiohttp.ClientSession, url: str, number: int) -> dict[str, Any]:
        nonce = secrets.token_urlsafe(18)
        query = {"nonce": nonce, "keys": ",".join(self.keys), "cursor": self.cursor, "wait": "30"}
        headers = {"Authorization": f"Bearer {self.tokens[number]}", "Gateway-Machine": self.machine}
        async with session.get(f"{url}/v1/changes", params=query, headers=headers) as response:
            body = await response.read()
            assert response.status == 200, body
            protocol.verify(self.keys, protocol.CHANGES, body, response.headers["Gateway-Signature"])
        said: dict[str, Any] = orjson.loads(body)
        assert (said["gateway"], said["nonce"]) == (f"g{number}", nonce)
        return said

    async def wait(self, session: aiohttp.ClientSession, url: str) -> list[asyncio.Task[dict[str, Any]]]:
        """All of them, once the central has every poll in hand."""
        polls = [asyncio.create_task(self.poll(session, url, number)) for number in range(_MANY)]
        until = time.monotonic() + 30
        while True:
            async with session.get(f"{url}/health") as response:
                if (await response.json())["gateways_waiting"] == _MANY:
                    return polls
            assert time.monotonic() < until
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> _Gates:
    return _Gates(tmp_path_factory.mktemp("central"))


def test_all_who_wait_are_answered(gates: _Gates) -> None:
    """A change reaches every one of two hundred polls that wait, signed for its own gateway and nonce."""

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            running(gates.directory, log=Log().logger()) as url,
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(20)) as session,
        ):
            polls = await gates.wait(session, url)
            admin = {"Authorization": "Bearer " + (gates.directory / "admin.token").read_text().strip()}
            record = url + "/admin/v1/venues/main/records/credential/C1"
            async with session.put(record, json=card(1), headers=admin) as response:
                assert response.status == 200
            for said in await asyncio.gather(*polls):
                assert said["records"] == [card(1)]
            async with session.get(url + "/metrics", headers=admin) as response:
                text = await response.text()
            assert f'gateway_central_requests_total{{call="/v1/changes",status="200"}} {_MANY}.0' in text
            assert f"gateway_central_gateways_connected {_MANY}.0" in text

    asyncio.run(run())


def test_a_stop_answers_all_who_wait(gates: _Gates) -> None:
    """Nobody's poll is cut off when the central is stopped: each is told that there is nothing new."""
    store = Store.open(gates.directory)
    gates.cursor = store.cursor("main", store.log("main")[1])
    store.close()

    async def run() -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(20)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            async with running(gates.directory, log=Log().logger()) as url:
                polls = await gates.wait(session, url)
            for said in await asyncio.gather(*polls):
                assert said["records"] == []

    asyncio.run(run())
