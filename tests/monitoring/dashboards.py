"""The dashboards as their files say, and their questions with the variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from tests.e2e.rig import Json
from tests.monitoring.prometheus import MONITORING

FILES = sorted((MONITORING / "grafana/dashboards").glob("*.json"))


def load(path: Path) -> Json:
    found: Json = json.loads(path.read_text())
    return found


def panels(dashboard: Json) -> list[Json]:
    """All but the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled(text: str, variables: Mapping[str, str]) -> str:
    """A text with ``$name`` and ``${name}`` replaced."""
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: variables[m[1] or m[2]], text)
