"""What people copy to deploy parses, sets only what there is, runs the Procfile's lines, and gives them their time."""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.processes import HERE, read_procfile
from shared.settings import Settings

DEPLOY = HERE / "deploy"
#: Of asgilook; of uvicorn; of the stores and Python, which read theirs themselves.
KNOWN = {
    *re.findall(r'read\(\s*"([A-Z_]+)"', inspect.getsource(Settings.from_env)),
    *("PORT", "WEB_CONCURRENCY", "ASGI_LOOK_WORKERS", "FORWARDED_ALLOW_IPS"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"),
    "PYTHONUNBUFFERED",
}
PAGES = sorted((HERE / "docs" / "deploy").glob("*.md"))
#: https://devcenter.heroku.com/articles/app-json-schema
APP_JSON = {
    *("name", "description", "keywords", "website", "repository", "logo", "success_url", "scripts", "env", "formation"),
    *("addons", "buildpacks", "environments", "stack", "image"),
}
GRACE = Settings().grace_seconds
#: Beyond the grace: for handing back, and to end.
REST = 5


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def compose() -> dict[str, Any]:
    services: dict[str, Any] = documents(DEPLOY / "compose.yaml")[0]["services"]
    return {name: service for name, service in services.items() if service["image"] == "asgilook"}


def pods() -> list[dict[str, Any]]:
    found = [document for path in (DEPLOY / "kubernetes").glob("*.yaml") for document in documents(path)]
    return [document["spec"]["template"]["spec"] for document in found if document["kind"] == "Deployment"]


def containers() -> list[dict[str, Any]]:
    return [one for pod in pods() for one in (*pod.get("initContainers", ()), *pod["containers"])]


def config_map() -> dict[str, str]:
    data: dict[str, str] = documents(DEPLOY / "kubernetes" / "config.yaml")[0]["data"]
    return data


def units() -> dict[str, configparser.RawConfigParser]:
    found = {}
    for path in sorted((DEPLOY / "systemd").glob("*.service")):
        unit = configparser.RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign] # names have capitals
        unit.read(path)
        found[path.stem] = unit
    return found


def env_file() -> dict[str, str]:
    """Return what the file for systemd sets, also where it is commented out."""
    lines = (DEPLOY / "systemd" / "asgilook.env").read_text().splitlines()
    return dict(re.findall(r"^#?([A-Z_]+)=(.*)$", "\n".join(lines), re.MULTILINE))


def app_json() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / "app.json").read_text())
    return content


def environments() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what each file sets, by the file's name."""
    for name, service in compose().items():
        yield f"compose.yaml: {name}", service["environment"]
    yield "config.yaml", config_map()
    for container in containers():
        yield f"kubernetes: {container['name']}", {one["name"]: one["value"] for one in container.get("env", ())}
    yield "asgilook.env", {name: value for name, value in env_file().items() if "…" not in value}
    yield "app.json", {name: one.get("value", "") for name, one in app_json()["env"].items()}


@pytest.mark.parametrize(("name", "env"), list(environments()))
def test_every_file_sets_what_there_is_to_values_that_make_sense(name: str, env: dict[str, str]) -> None:
    assert env.keys() <= KNOWN, name
    assert all(isinstance(value, str) for value in env.values())
    Settings.from_env(env)


def test_heroku_gets_what_it_needs_to_start() -> None:
    """Its add-ons set DATABASE_URL and REDIS_URL; where the pictures go, whoever deploys is asked."""
    content = app_json()
    env = {name: one.get("value", "") for name, one in content["env"].items()}

    assert content.keys() <= APP_JSON
    assert content["formation"].keys() == {"web", "worker"} <= read_procfile().keys()
    assert {plan.partition(":")[0] for plan in content["addons"]} == {"heroku-postgresql", "heroku-redis"}
    assert "value" not in content["env"]["ASGI_LOOK_STORAGE"]
    Settings.from_env(
        env
        | {"DYNO": "web.1", "DATABASE_URL": "postgres://db.example/one", "REDIS_URL": "rediss://:x@redis.example:6380"}
        | {"ASGI_LOOK_STORAGE": "s3://bucket/prefix"}
    )


def test_every_file_runs_lines_of_the_procfile() -> None:
    started = [service["command"] for service in compose().values()]
    started += [container["args"] for container in containers()]
    parts = {tuple(words) for words in started}
    for name, unit in units().items():
        if name != "asgilook-check":
            program, part = unit["Service"]["ExecStart"].split()
            assert program == "/srv/asgilook/deploy/part"
            assert name == f"asgilook-{part}"
            parts.add((part,))

    assert parts == {(name,) for name in read_procfile()}


def test_every_file_gives_a_process_its_grace_and_the_time_to_end() -> None:
    given = [int(service["stop_grace_period"].removesuffix("s")) for service in compose().values()]
    for pod in pods():
        (container,) = pod["containers"]
        before = int(container["lifecycle"]["preStop"]["exec"]["command"][1]) if "lifecycle" in container else 0
        given.append(pod["terminationGracePeriodSeconds"] - before)
    for name in ("asgilook-web", "asgilook-worker"):
        given.append(int(units()[name]["Service"]["TimeoutStopSec"]))
        # Else a supervisor's web processes would be told twice.
        assert units()[name]["Service"]["KillMode"] == "mixed"

    assert min(given) >= GRACE + REST
    for _, env in environments():
        assert Settings.from_env(env).grace_seconds == GRACE


def test_no_process_needs_a_privilege() -> None:
    for service in compose().values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    for container in containers():
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
    for unit in units().values():
        assert unit["Service"]["User"] == "asgilook"


def test_the_image_has_all_that_the_parts_need_and_nothing_else() -> None:
    copied = re.findall(r"^COPY (\S+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    let_in = re.findall(r"^!(\S+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(), re.MULTILINE)

    assert sorted(copied) == sorted(let_in)
    assert {"api", "shared", "worker", "Procfile", "requirements.txt", "deploy/part"} == set(copied)


@pytest.mark.parametrize("page", [*PAGES, *sorted(DEPLOY.rglob("*.*"))], ids=lambda path: path.name)
def test_pages_and_comments_name_settings_and_files_that_there_are(page: Path) -> None:
    text = page.read_text()

    assert set(re.findall(r"\bASGI_LOOK_[A-Z_]+[A-Z]\b", text)) <= KNOWN
    named = {path.rstrip(".") for path in re.findall(r"(?<![\w/.])((?:deploy|docs)/[\w./-]+)", text)}
    assert [path for path in named if not (HERE / path).exists()] == []
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if page.suffix == ".md" else []
    assert [path for path in linked if not (page.parent / path).exists()] == []


def part(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DEPLOY / "part"), *arguments],
        cwd="/",
        env={"PATH": f"{Path(sys.executable).parent}:{os.defpath}", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.processes
def test_a_part_is_the_procfiles_line_wherever_it_is_started(tmp_path: Path) -> None:
    done = part("release", ASGI_LOOK_STORAGE_PATH=str(tmp_path / "data"))

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "data" / "ledger.sqlite3").exists()


@pytest.mark.processes
def test_a_part_that_there_is_not_is_refused() -> None:
    done = part("clock")

    assert (done.returncode, done.stderr) == (64, "asgilook: the Procfile has no line: clock\n")
