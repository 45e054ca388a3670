"""Logging never holds up the gate, and never loses count of what it dropped."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import orjson

from gateway import log


def lines(text: str) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in text.splitlines()]


def test_json_lines_where_the_output_is_no_terminal() -> None:
    """Under systemd each event is one JSON object with its level, time and part."""
    stream = io.StringIO()
    writer = log.start("info", stream)
    log.logger("gate").warning("reader is down", reader="north-in")
    log.logger("gate").debug("not shown")
    writer.close()
    (line,) = lines(stream.getvalue())
    assert line["event"] == "reader is down"
    assert (line["level"], line["part"], line["reader"]) == ("warning", "gate", "north-in")
    assert str(line["timestamp"]).endswith("Z")


def test_readable_lines_on_a_terminal() -> None:
    """A technician at a terminal reads words, not JSON."""
    master, slave = os.openpty()
    try:
        with os.fdopen(slave, "w") as stream:
            writer = log.start("info", stream)
            log.logger("gate").info("ready", lanes=2)
            writer.close()
        text = os.read(master, 4096).decode()
    finally:
        os.close(master)
    assert "ready" in text
    assert not text.startswith("{")


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_caller() -> None:
    """The queue is bounded; what does not fit is counted and the count is logged when there is room."""
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        writer = log.start("info", stream)
        for number in range(6000):
            log.logger("gate").info("flood", number=number)
        # It came back: nobody has read a byte yet. Now everything is read, and one more line is logged.
        got = b""
        while b"last" not in got:
            got += os.read(read, 1 << 16)
            log.logger("gate").info("last")
        writer.close()
    os.close(read)
    told = lines(got[: got.rindex(b"\n")].decode())
    dropped = sum(int(str(line.get("log_lines_dropped", 0))) for line in told)
    flood = sum(line["event"] == "flood" for line in told)
    assert dropped > 0
    assert flood + dropped >= 6000


def test_an_exception_is_logged_as_text() -> None:
    """An internal error leaves its traceback in the log."""
    stream = io.StringIO()
    writer = log.start("info", stream)
    try:
        raise ValueError("broken")
    except ValueError as error:
        log.logger("gate").critical("internal error", exc_info=error)
    writer.close()
    (line,) = lines(stream.getvalue())
    assert "ValueError: broken" in str(line["exception"])


def test_the_journal_gets_entries_of_fields(tmp_path: Path) -> None:
    """An entry has the message for people, its priority, and each value in a field of its own; a line break
    in a value begins no other field, for its length stands before it (JOURNAL_NATIVE_PROTOCOL)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "socket"))
        journal = log.Journal(str(tmp_path / "socket"))
        event = {"event": "reader is down", "level": "warning", "part": "gate", "reader": "in", "lanes": 2}
        journal.write(journal.render({**event, "timestamp": "now"}))
        assert journald.recv(65536).decode().splitlines() == [
            "MESSAGE=reader is down reader=in lanes=2",
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=gateway",
            "GATEWAY_EVENT=reader is down",
            "GATEWAY_PART=gate",
            "GATEWAY_READER=in",
            "GATEWAY_LANES=2",
        ]
        journal.write(
            journal.render({"event": "error", "level": "critical", "exception": "é" * 100 + "\nX=1"})
        )
        entry = journald.recv(65536)
        text = ("é" * 100 + "\nX=1").encode()
        assert b"GATEWAY_EXCEPTION\n" + len(text).to_bytes(8, "little") + text + b"\n" in entry
        journal.close()
