"""``gateway central conformance URL``: docs/protocol.md, point by point, against any server.

The run plays two gateways. What it needs done at the central goes over the admin API of the reference
central, or over a program of the vendor's (``--hook``); what cannot be done is reported as not tested.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from gateway.central.adminclient import Admin, CentralError, read_token

CLEAN, FAULTS = 0, 1
PARTS = (
    *("general", "snapshot", "waiting", "changes", "limits", "events", "usage", "commands"),
    *("keys", "tokens", "revoked", "guessing"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of the server, like https://central.example")
    parser.add_argument("--admin-token", metavar="FILE", help="where the server is the reference central")
    parser.add_argument("--venue", default="main", metavar="VENUE", help="default: main")
    parser.add_argument(
        "--enrolment-code",
        metavar="FILE",
        help="codes, one a line: two for one gateway, then one for another of the same venue",
    )
    parser.add_argument("--change-command", metavar="CMD", help="makes a harmless change to any record")
    parser.add_argument(
        "--hook", metavar="CMD", help="does at the server what it is told: see docs/protocol.md"
    )
    parser.add_argument(
        "--gone-cursors", metavar="FILE", help="cursors, one a line, that must be answered with 410"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        metavar="PART",
        help=f"joining, and this part: {', '.join(PARTS)}",
    )
    parser.add_argument("--json", action="store_true", help="NDJSON instead of text")


def run(options: argparse.Namespace) -> int:
    """Run it all and print the report. Raises CentralError where it could not run."""
    import orjson

    from gateway.central.conformance.means import Means, command_of
    from gateway.central.conformance.report import FAILED, NOT_TESTED, OK, Point, Report
    from gateway.central.conformance.script import examine

    token = options.admin_token or (
        None if options.enrolment_code else os.environ.get("GATEWAY_ADMIN_TOKEN_FILE")
    )
    if not token and not options.enrolment_code:
        raise CentralError(
            "give --admin-token FILE for the reference central, --enrolment-code FILE for another"
        )
    means = Means(
        venue=options.venue,
        admin=Admin(options.url, read_token(token)) if token else None,
        codes=_lines(options.enrolment_code),
        change_command=command_of(options.change_command),
        hook=command_of(options.hook),
    )

    def tell(point: Point) -> None:
        line = orjson.dumps(point.json()).decode() if options.json else point.line()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    report = Report(tell)
    examine(options.url, means, report, _lines(options.gone_cursors), options.only or ())
    counts = {outcome: report.count(outcome) for outcome in (OK, FAILED, NOT_TESTED)}
    summed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    sys.stderr.write(f"gateway: {summed}\n")
    return FAULTS if counts[FAILED] else CLEAN


def _lines(file: str | None) -> list[str]:
    if file is None:
        return []
    try:
        return Path(file).read_text().split()
    except (OSError, ValueError):
        raise CentralError("--enrolment-code and --gone-cursors take files, one item a line") from None
