"""The pages of the repository: links lead somewhere, what they name exists, and none is too long to be read."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
#: Words that a page may have; a changelog grows, and a page that a command writes is as long as its figures.
MOST_WORDS = {"README.md": 1_200, "ARCHITECTURE.md": 1_600}
MOST_WORDS_OF_A_PAGE = 1_500
#: Marks a page that a command has written for the most part.
GENERATED = re.compile(r"<!-- (measured|computed|generated)\b")
#: Variables that something else reads: the server, the launcher, OpenTelemetry.
READ_ELSEWHERE = {
    "PORT",
    "WEB_CONCURRENCY",
    "FORWARDED_ALLOW_IPS",
    "ASGI_LOOK_WORKERS",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
}

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@each_page
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert [link for link in _links(page) if not _leads_somewhere(page, link)] == []


@each_page
def test_a_page_is_short_enough_to_be_read(page: Path) -> None:
    text = page.read_text()
    if page.name == "CHANGELOG.md" or GENERATED.search(text):
        return
    assert len(text.split()) <= MOST_WORDS.get(page.name if page.parent == ROOT else "", MOST_WORDS_OF_A_PAGE)


@each_page
def test_every_command_of_python_names_a_module(page: Path) -> None:
    modules = set(re.findall(r"python3? -m ((?:api|worker|shared|launch|bench|tests)[\w.]*\w)", page.read_text()))

    assert [module for module in sorted(modules) if importlib.util.find_spec(module) is None] == []


@each_page
def test_every_module_and_test_that_is_named_exists(page: Path) -> None:
    """A test without a folder is a neighbour of the one before, as in `tests/api/test_urls.py`, `test_wait.py`."""
    missing, folder = [], ROOT / "tests"
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.py|(?:api|worker|shared|launch|tests)/[\w/]*)`", page.read_text()):
        path = ROOT / name
        if path.is_file() or path.is_dir() or path.with_suffix(".py").is_file():
            folder = path if path.is_dir() else path.parent
        elif not (folder / name).is_file():
            missing.append(name)

    assert missing == []


def test_every_setting_is_explained_once_and_listed_in_the_readme() -> None:
    settings = {*re.findall(r'read\(\s*"([A-Z_]+)"', inspect.getsource(Settings.from_env)), *READ_ELSEWHERE}
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs" / "configuration.md").read_text(), re.MULTILINE)
    explained = [name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)]
    listed = set(re.findall(r"`([A-Z_]+)`", (ROOT / "README.md").read_text()))

    assert sorted(explained) == sorted(settings)
    assert settings <= listed


def _links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            yield link


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = page.parent / path if path else page
    return target.exists() and (not heading or heading in _headings(target))


def _headings(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_module_past_250_lines_says_why_at_its_top() -> None:
    modules = [module for room in ("api", "worker", "shared", "launch") for module in (ROOT / room).rglob("*.py")]
    long = [module for module in modules if len(module.read_text().splitlines()) > 250]

    assert long != []
    for module in long:
        assert "250 lines" in module.read_text().partition('"""')[2].partition('"""')[0], module
