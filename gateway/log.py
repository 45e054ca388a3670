"""Structured logs, off the hot path: whoever logs appends to a bounded queue, one thread writes.

To systemd's journal as fields of its own (``journalctl GATEWAY_READER=north-in``, ``-p warning``), with a
message for people; JSON lines where the output is a file or a pipe; readable lines at a terminal. A pipe that
nobody reads may hold up the thread, never the gate: what does not fit the queue is counted and the count is
logged when there is room again.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Protocol, TextIO

import orjson
import structlog

_ROOM = 2000
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}


class _Out(Protocol):
    """Where lines go to."""

    def write(self, text: str, /) -> object: ...
    def flush(self) -> None: ...


class Journal:
    """systemd's journal, by its own protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram is an entry.
    What listens is systemd's own socket, also while journald is started anew."""

    def __init__(self, path: str = "/run/systemd/journal/socket") -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def write(self, entry: str) -> None:
        """Send what ``render`` made. Raises OSError."""
        self._socket.sendto(entry.encode(errors="surrogateescape"), self._path)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._socket.close()

    @staticmethod
    def render(event: dict[str, Any]) -> str:
        """An event as an entry: ``reader`` becomes the field GATEWAY_READER, and is in the message too."""
        told = {key: _text(value) for key, value in event.items() if key not in ("level", "timestamp")}
        words = [f"{key}={value}" for key, value in told.items() if key not in ("event", "part", "exception")]
        fields = {
            "MESSAGE": "\n".join([" ".join([told["event"], *words]), *filter(None, [told.get("exception")])]),
            "PRIORITY": str(_PRIORITIES[event["level"]]),
            "SYSLOG_IDENTIFIER": "gateway",
            **{f"GATEWAY_{key.upper()}": value for key, value in told.items()},
        }
        return "".join(_field(key, value) for key, value in fields.items())


def _field(key: str, value: str) -> str:
    if "\n" not in value:
        return f"{key}={value}\n"
    length = len(value.encode()).to_bytes(8, "little").decode(errors="surrogateescape")
    return f"{key}\n{length}{value}\n"


_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""Of syslog(3)."""


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _journal(stream: TextIO) -> Journal | None:
    """The journal, if systemd has connected this very stream with it (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        at = os.fstat(stream.fileno())
        if os.environ.get("JOURNAL_STREAM") != f"{at.st_dev}:{at.st_ino}":
            return None
    except (OSError, ValueError):
        return None
    return Journal()


class LogWriter:
    """The thread that renders and writes. Use ``logger()`` for the logger that feeds it."""

    def __init__(self, stream: _Out, render: Callable[[dict[str, Any]], str]) -> None:
        self._stream = stream
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._dropped = 0
        self._render = render
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def __call__(self, _logger: object, level: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """The last structlog processor on the caller's side: hand over and forget."""
        if self._queue.qsize() >= _ROOM:
            self._dropped += 1
        else:
            self._queue.put({**event, "level": level})
        raise structlog.DropEvent

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            if self._dropped and not self._queue.qsize():
                event["log_lines_dropped"], self._dropped = self._dropped, 0
            try:
                self._stream.write(self._render(event))
                if not self._queue.qsize():
                    self._stream.flush()
            except (OSError, ValueError):
                # The reader of our log is gone (EPIPE) or the stream is closed: the gate goes on.
                self._dropped += 1

    def close(self) -> None:
        """Write what is queued, for at most a second."""
        self._queue.put(None)
        self._thread.join(timeout=1)
        if isinstance(self._stream, Journal):
            self._stream.close()


def _json(event: dict[str, Any]) -> str:
    return orjson.dumps(event, default=str, option=orjson.OPT_APPEND_NEWLINE).decode()


def _console(event: dict[str, Any]) -> str:
    renderer = structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)
    return f"{renderer(None, event.get('level', 'info'), event)}\n"


def start(level: str = "info", stream: TextIO | None = None) -> LogWriter:
    """Set structlog up for this process; returns the writer, to be closed at the end."""
    stream = stream or sys.stderr
    journal = _journal(stream)
    if journal is not None:
        writer = LogWriter(journal, journal.render)
    else:
        writer = LogWriter(stream, _console if stream.isatty() else _json)
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(),
            writer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        cache_logger_on_first_use=False,
    )
    return writer


def logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """A logger for one part of the gateway."""
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name)
    return log
