"""What sets off the example alerts, and what does not: Prometheus' own tool goes through tests/alerts.yml."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import yaml

from launch.processes import HERE

CASES = HERE / "tests" / "alerts.yml"


def test_alerts_tell_of_trouble_and_of_nothing_else() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (on Debian and Ubuntu: apt install prometheus)")

    done = subprocess.run([promtool, "test", "rules", CASES], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_go_off_and_to_keep_still() -> None:
    (group,) = yaml.safe_load((HERE / "docs" / "alerts.yml").read_text())["groups"]
    cases = [case for run in yaml.safe_load(CASES.read_text())["tests"] for case in run["alert_rule_test"]]

    alerts = {rule["alert"] for rule in group["rules"]}

    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts
