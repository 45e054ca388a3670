"""A dashboard drawn from the answers to its questions: grid, units, thresholds, mappings and stacking as its
file states them, in the colours that Grafana gives them. For the pictures in docs/, where no Grafana is.

Nothing here makes up data: a panel without an answer is drawn empty.
"""

from __future__ import annotations

import math
import re
import time
from html import escape
from typing import Any

from tests.e2e.rig import Json

WIDTH = 1360
_CELL, _ROW, _GAP, _HEAD = WIDTH / 24, 33, 6, 24
_NAMED = {
    "green": "#73bf69",
    "yellow": "#fade2a",
    "red": "#f2495c",
    "blue": "#5794f2",
    "purple": "#b877d9",
    "text": "#ccccdc",
}
_CLASSIC = (
    *("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1"),
    *("#ba43a9", "#705da0", "#508642", "#cca300", "#447ebc", "#c15c17"),
)
_DIM, _GRID, _FACE, _BACK = "#8e8ea0", "#2c2f36", "#181b1f", "#111217"

Answers = dict[int, list[list[Json]]]
"""By panel id, what each of its targets was answered: series of Prometheus's API."""


# --- values -------------------------------------------------------------------------------------------


def amount(value: float, unit: str, decimals: int | None = None, now: float = 0) -> str:
    """A value in the words of a unit of Grafana's. ``now``: for how long ago something was."""

    def number(x: float) -> str:
        if decimals is not None:
            return f"{x:.{decimals}f}"
        return f"{x:.0f}" if abs(x) >= 100 else f"{x:.3g}"

    if unit == "percentunit":
        return number(value * 100) + "%"
    if unit == "dateTimeFromNow":
        return amount(now - value / 1000, "s", 0) + " ago"
    if unit == "s":
        for size, name in (
            (86400, "days"),
            (3600, "hours"),
            (60, "mins"),
            (1, "s"),
            (1e-3, "ms"),
            (1e-6, "µs"),
        ):
            if abs(value) >= size:
                return f"{number(value / size)} {name}"
        return "0 s"
    if unit == "d":
        return f"{number(value)} days"
    if unit in ("bytes", "Bps"):
        for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
            if abs(value) >= 1024**power:
                return f"{number(value / 1024**power)} {name}" + ("/s" if unit == "Bps" else "")
        return f"{number(value)} B" + ("/s" if unit == "Bps" else "")
    if unit == "short" and abs(value) >= 1000:
        return number(value / 1000) + " K"
    return number(value)


def coloured(value: float, steps: list[Json]) -> str:
    """The colour of the threshold that a value has reached."""
    found = steps[0]["color"]
    for step in steps[1:]:
        if value >= step["value"]:
            found = step["color"]
    return _NAMED[found]


def shown(value: float, field: Json, now: float = 0) -> tuple[str, str]:
    """A value as a field shows it, and its colour: mapped, or with its unit and threshold."""
    for mapping in field.get("mappings", []):
        said = mapping["options"].get(f"{value:g}")
        if said:
            return said["text"], _NAMED[said["color"]]
    steps = field["thresholds"]["steps"]
    return amount(value, field.get("unit") or "short", field.get("decimals"), now), coloured(value, steps)


def named(series: Json, legend: str) -> str:
    """What a series is called in the legend."""
    labels = series["metric"]
    if legend == "__auto":
        return " ".join(f"{v}" for k, v in labels.items() if k != "__name__") or "value"
    return re.sub(r"\{\{(\w+)\}\}", lambda m: labels.get(m[1], ""), legend)


def _series(panel: Json, answers: list[list[Json]]) -> list[tuple[str, Json]]:
    return [
        (named(series, target["legendFormat"]), series)
        for target, answer in zip(panel["targets"], answers, strict=True)
        for series in answer
    ]


# --- panels -------------------------------------------------------------------------------------------


def text(x: float, y: float, said: str, colour: str = _DIM, size: int = 12, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" {more}>{escape(said)}</text>'


def _stat(panel: Json, answers: list[list[Json]], w: float, h: float, now: float) -> str:
    found, out = _series(panel, answers), []
    field = panel["fieldConfig"]["defaults"]
    mode = panel["options"]["textMode"]
    for n, (name, series) in enumerate(found):
        last = float((series.get("values") or [series.get("value")])[-1][1])
        said, colour = shown(last, field, now)
        if mode == "name":
            said = name
        x = w * (n + 0.5) / len(found)
        size = min(34, int(1.7 * w / len(found) / max(4, len(said))))
        middle = 'text-anchor="middle"'
        out.append(text(x, h / 2 + 12, said, colour, size, middle))
        if mode == "value_and_name":
            out.append(text(x, h / 2 + 34, name, _DIM, 12, middle))
        if "values" in series and panel["options"]["graphMode"] == "area":
            values = [float(v) for _, v in series["values"]]
            top = max([*values, 1e-9])
            points = " ".join(
                f"{w * i / max(1, len(values) - 1):.1f},{h - 4 - 24 * v / top:.1f}"
                for i, v in enumerate(values)
            )
            out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
    return "".join(out)


def _ticks(top: float) -> list[float]:
    """Four or five round values from 0 on."""
    step = 10.0 ** len(str(int(top))) if top >= 1 else 1.0
    while top / step < 3:
        step /= 2 if f"{step:e}"[0] in "2" else 2.5 if f"{step:e}"[0] == "5" else 2
    return [step * n for n in range(int(top / step) + 2)]


def _timeseries(panel: Json, answers: list[list[Json]], w: float, h: float, span: tuple[float, float]) -> str:
    found = _series(panel, answers)
    field, custom = panel["fieldConfig"]["defaults"], panel["fieldConfig"]["defaults"]["custom"]
    fixed = {
        o["matcher"]["options"]: _NAMED[o["properties"][0]["value"]["fixedColor"]]
        for o in panel["fieldConfig"]["overrides"]
    }
    stacked, bars = custom["stacking"]["mode"] == "normal", custom["drawStyle"] == "bars"
    start, end = span
    lines: list[tuple[str, str, dict[float, tuple[float, float]]]] = []
    below: dict[float, float] = {}
    for n, (name, series) in enumerate(found):
        points = {}
        for at, said in series["values"]:
            if (value := float(said)) == value:  # NaN: no scan in that time
                base = below.get(at, 0.0) if stacked else 0.0
                points[at] = base, base + value
                below[at] = base + value
        lines.append((name, fixed.get(name, _CLASSIC[n % len(_CLASSIC)]), points))
    top = max([y for _, _, points in lines for _, y in points.values()] + [1e-9])
    if top == 1e-9:
        top = 1.0
    grade = 1024 ** int(math.log(max(top, 1), 1024)) if field["unit"] in ("bytes", "Bps") else 1
    ticks = [tick * grade for tick in _ticks(top / grade)]
    top = max(ticks[-1], top) * 1.02
    left, right, bottom = 66.0, w - 12, h - 44

    def px(at: float) -> float:
        return left + (right - left) * (at - start) / (end - start)

    def py(value: float) -> float:
        return bottom - (bottom - 6) * value / top

    out = []
    for tick in ticks:
        y = py(tick)
        out.append(f'<line x1="{left}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{_GRID}"/>')
        out.append(text(left - 6, y + 4, amount(tick, field["unit"]), _DIM, 11, 'text-anchor="end"'))
    out.append(_times(px, bottom + 16, span))
    if custom["thresholdsStyle"]["mode"] == "dashed":
        for step in field["thresholds"]["steps"][1:]:
            if step["value"] < top:
                y = py(step["value"])
                style = f'stroke="{_NAMED[step["color"]]}" stroke-dasharray="6 4"'
                out.append(f'<line x1="{left}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}" {style}/>')
    for _, colour, points in lines:
        runs: list[list[tuple[float, float, float]]] = []
        step = (end - start) / 150
        for at, (base, value) in sorted(points.items()):
            if bars:
                width = max(1.0, px(start + step) - left - 0.5)
                height = py(base) - py(value)
                out.append(
                    f'<rect x="{px(at) - width / 2:.1f}" y="{py(value):.1f}" width="{width:.1f}" '
                    f'height="{height:.1f}" fill="{colour}" opacity="0.8"/>'
                )
            elif runs and at - runs[-1][-1][0] <= step * 1.5:
                runs[-1].append((at, base, value))
            else:
                runs.append([(at, base, value)])
        for run in runs:
            line = " ".join(f"{px(at):.1f},{py(value):.1f}" for at, _, value in run)
            floor = " ".join(f"{px(at):.1f},{py(base):.1f}" for at, base, _ in reversed(run))
            opacity = custom["fillOpacity"] / 100
            out.append(f'<polygon points="{line} {floor}" fill="{colour}" opacity="{opacity}"/>')
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    x = left - 50
    for name, colour, _ in lines:
        if x + 22 + 6.7 * len(name) > w:
            break
        out.append(f'<rect x="{x:.1f}" y="{h - 14:.1f}" width="14" height="4" fill="{colour}"/>')
        out.append(text(x + 18, h - 8, name, "#c7c7d4", 12))
        x += 32 + 6.7 * len(name)
    return "".join(out)


def _times(px: Any, y: float, span: tuple[float, float]) -> str:
    start, end = span
    room = (px(end) - px(start)) / 72
    every = next(e for e in (30, 60, 120, 300, 900, 3600) if (end - start) / e <= room)
    at, out = (int(start) // every + 1) * every, []
    while at < end:
        out.append(
            text(px(at), y, time.strftime("%H:%M:%S", time.gmtime(at)), _DIM, 11, 'text-anchor="middle"')
        )
        at += every
    return "".join(out)


def _states(panel: Json, answers: list[list[Json]], w: float, h: float, span: tuple[float, float]) -> str:
    found = sorted(_series(panel, answers), key=lambda each: each[0])
    field, (start, end) = panel["fieldConfig"]["defaults"], span
    left = 20 + 7.2 * max([len(name) for name, _ in found] + [4])
    each = (h - 28) / max(1, len(found))
    step = (end - start) / 150

    def px(at: float) -> float:
        return left + (w - 12 - left) * (at - start) / (end - start)

    out = [_times(px, h - 8, span)]
    for n, (name, series) in enumerate(found):
        y, height = n * each + 3, min(34.0, each * 0.85)
        out.append(text(left - 8, y + height / 2 + 4, name, "#c7c7d4", 12, 'text-anchor="end"'))
        runs: list[list[float]] = []
        for at, said in series["values"]:
            if runs and runs[-1][2] == float(said) and at - runs[-1][1] <= step * 1.5:
                runs[-1][1] = at
            else:
                runs.append([at, at, float(said)])
        for began, ended, value in runs:
            said, colour = shown(value, field)
            x, width = px(began), max(2.0, px(min(end, ended + step)) - px(began))
            out.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
                'opacity="0.8"/>'
            )
            if width > 8 * len(said):
                out.append(text(x + 6, y + height / 2 + 4, said, "#111217", 12))
    return "".join(out)


def _table(panel: Json, answers: list[list[Json]], w: float, now: float) -> str:
    organise = panel["transformations"][-1]["options"]
    hidden, renamed = organise["excludeByName"], organise["renameByName"]
    rows: dict[tuple[str, ...], dict[str, str | float]] = {}
    columns: list[str] = []
    for n, answer in enumerate(answers):
        value_name = "Value" if len(answers) == 1 else f"Value #{chr(65 + n)}"
        for series in answer:
            row = rows.setdefault(tuple(series["metric"].values()), dict(series["metric"]))
            row[value_name] = float(series["value"][1])
    for row in rows.values():
        columns += [c for c in row if c not in columns and not hidden.get(c)]
    columns.sort(key=lambda c: (c.startswith("Value"), c))
    fields = {
        o["matcher"]["options"]: {p["id"]: p["value"] for p in o["properties"]}
        for o in panel["fieldConfig"]["overrides"]
    }
    wide = [1.5 if column == columns[0] and len(answers) == 1 else 1.0 for column in columns]
    starts = [w * sum(wide[:n]) / sum(wide) + 10 for n in range(len(wide))]
    out = []
    for n, column in enumerate(columns):
        name = renamed.get(column, column)
        out.append(text(starts[n], 16, name, "#6e9fff", 12, 'font-weight="600"'))
        own = fields.get(name, {})
        field = {**panel["fieldConfig"]["defaults"], **own}
        for line, key in enumerate(sorted(rows)):
            y = 40 + 26 * line
            if n == 0:
                out.append(f'<line x1="0" x2="{w:.1f}" y1="{y - 18}" y2="{y - 18}" stroke="{_GRID}"/>')
            value = rows[key].get(column)
            if isinstance(value, float):
                said, colour = shown(value, field, now)
                colour = colour if "thresholds" in own else "#ccccdc"
            else:
                said, colour = str(value or ""), "#ccccdc" if "links" not in own else "#6e9fff"
            out.append(text(starts[n], y, said, colour, 13))
    return "".join(out)


# --- the whole ----------------------------------------------------------------------------------------


def page(dashboard: Json, answers: Answers, span: tuple[float, float], chosen: str) -> str:
    """The dashboard as an HTML page with one SVG. ``span``: from and to, seconds since 1970."""
    bottom = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
    height = int(bottom * _ROW + 60)
    out = [
        text(14, 34, dashboard["title"], "#ffffff", 20),
        text(WIDTH - 12, 34, chosen, _DIM, 14, 'text-anchor="end"'),
    ]
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        x, y = at["x"] * _CELL + _GAP / 2, at["y"] * _ROW + 52
        w, h = at["w"] * _CELL - _GAP, at["h"] * _ROW - _GAP
        if panel["type"] == "row":
            out.append(text(x + 6, y + 20, f"⌄ {panel['title']}", "#ffffff", 15))
            continue
        out.append(f'<g transform="translate({x:.1f},{y:.1f})">')
        out.append(f'<rect width="{w:.1f}" height="{h:.1f}" rx="3" fill="{_FACE}" stroke="{_GRID}"/>')
        out.append(text(10, 18, panel["title"], "#d9d9e3", 13, 'font-weight="600"'))
        out.append(f'<svg y="{_HEAD}" width="{w:.1f}" height="{h - _HEAD:.1f}">')
        given, inner = answers[panel["id"]], h - _HEAD
        if not any(given):
            out.append(text(w / 2, inner / 2, "No data", _DIM, 14, 'text-anchor="middle"'))
        elif panel["type"] == "stat":
            out.append(_stat(panel, given, w, inner, span[1]))
        elif panel["type"] == "timeseries":
            out.append(_timeseries(panel, given, w, inner, span))
        elif panel["type"] == "state-timeline":
            out.append(_states(panel, given, w, inner, span))
        else:
            out.append(_table(panel, given, w, span[1]))
        out.append("</svg></g>")
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}">{"".join(out)}</svg>'
    style = (
        f"body{{margin:0;background:{_BACK};font-family:Inter,'DejaVu Sans',sans-serif}}svg{{display:block}}"
    )
    return f'<!doctype html><meta charset="utf-8"><style>{style}</style>{svg}'
