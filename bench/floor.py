"""The least that could be done between a scanner and a relay: the loop that the gate is held against.

``python -m bench.floor SCANNER BOARD DB``: read a code from one pty, commit 80 bytes to SQLite (WAL,
``synchronous=FULL``: one flush), write four bytes to the other pty. No framing, no judgement, no threads.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tty

ON = bytes.fromhex("a00101a2")


def main() -> None:
    scanner, board = (os.open(path, os.O_RDWR | os.O_NOCTTY) for path in sys.argv[1:3])
    for fd in (scanner, board):
        tty.setraw(fd)
    conn = sqlite3.connect(sys.argv[3], isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("CREATE TABLE IF NOT EXISTS event (seq INTEGER PRIMARY KEY, data BLOB)")
    # Once round the log without flushes: from then on it is written over, as the gate's is after its first
    # checkpoint. A file that grows costs a flush of the file system's own journal too.
    conn.execute("PRAGMA synchronous = OFF")
    for _ in range(1100):
        conn.execute("INSERT INTO event (data) VALUES (?)", (b"." * 80,))
    conn.execute("PRAGMA synchronous = FULL")
    os.write(board, b".")
    while data := os.read(scanner, 4096):
        conn.execute("INSERT INTO event (data) VALUES (?)", (data.ljust(80, b"."),))
        os.write(board, ON)


if __name__ == "__main__":
    main()
