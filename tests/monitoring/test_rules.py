"""The alerts: each is tried by promtool, and each is explained."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import yaml

from tests.monitoring.prometheus import MONITORING, ROOT, tool

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((MONITORING / "gateway.rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
PAGE = (ROOT / "docs/alerts.md").read_text()


def promtool(*arguments: str) -> None:
    done = subprocess.run(
        [tool("promtool"), *arguments], cwd=MONITORING, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_files() -> None:
    """The configuration, and with it the rules, are what Prometheus reads."""
    promtool("check", "config", "prometheus.yml")


def test_the_alerts_fire_when_they_should() -> None:
    """`promtool test rules` agrees with every case."""
    promtool("test", "rules", "gateway.rules.test.yml")


def test_each_alert_is_tried() -> None:
    """Each has a case in which it comes and was not there before, and beside it one that is as near to it as
    it may be without."""
    tests = yaml.safe_load((MONITORING / "gateway.rules.test.yml").read_text())["tests"]
    tried = set()
    for test in tests:
        [alert] = {case["alertname"] for case in test["alert_rule_test"]}
        tried.add(alert)
        cases = [bool(case["exp_alerts"]) for case in test["alert_rule_test"]]
        assert cases[:2] == [False, True], alert
        series = " ".join(series["series"] for series in test["input_series"])
        assert 'instance="bad"' in series, alert
        assert 'instance="edge"' in series, alert
        fires = {a["exp_labels"]["instance"] for c in test["alert_rule_test"] for a in c["exp_alerts"]}
        assert "edge" not in fires, alert
    assert tried == set(ALERTS)


def test_each_alert_is_explained() -> None:
    """docs/alerts.md has a section for each alert, which says how urgent it is as the rule does, where to
    look and what to do, and none for others; the alert leads to it."""
    sections = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
    assert list(sections) == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{name.lower()}"
        assert sections[name].strip().startswith(f"**{rule['labels']['severity']}**"), name
        assert re.search(r"^- Look(:|, do:)", sections[name], re.MULTILINE), name
        assert re.search(r"^- (Do|Look, do):", sections[name], re.MULTILINE), name
        assert "$labels.instance" in rule["annotations"]["summary"], name


def test_alerts_ask_for_what_is_exported() -> None:
    """Each metric in a rule is one that the README describes, or is recorded by a rule."""
    described = set(re.findall(r"^\| `(gateway_\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    for rule in RULES:
        for name in re.findall(r"(?<![\w:])gateway_\w+", rule["expr"]):
            assert name.removesuffix("_bucket") in described, (name, rule)
