"""What a service has in its ledger, its storage and its output, looked at from outside."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any

from tests.integration.service import Response, Service, is_apart
from tests.postgresql import execute

#: The parts of an answer that two equal answers may differ in.
_MAY_DIFFER = ("date", "x-asgilook-cache")


def is_on_postgresql(service: Service) -> bool:
    """Tell whether the service's ledger is on PostgreSQL, and not in a file of its data folder."""
    return service.env.get("DATABASE_URL", "").startswith("postgres")


def query(service: Service, statement: str) -> list[dict[str, Any]]:
    """Execute one statement in the ledger; return its rows."""
    if is_on_postgresql(service):
        return execute(service.env["DATABASE_URL"], statement)
    with closing(sqlite3.connect(service.data / "ledger.sqlite3", timeout=60)) as connection, connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


def rows_of(service: Service) -> dict[str, dict[str, Any]]:
    """Return the ledger's rows by their images' ids.

    Each has two members besides: `debts`, the kinds of what is owed for it in order of the alphabet, and `published`,
    the newest attempt of which a rendition is in use.
    """
    kinds = "string_agg(kind, ',')" if is_on_postgresql(service) else "group_concat(kind)"
    owed = f"(SELECT {kinds} FROM debts WHERE image_id = images.id) AS debts"  # noqa: S608 - names of ours
    rows = query(service, f"SELECT images.*, {owed} FROM images")  # noqa: S608 - names of ours
    return {row["id"]: row | _told(row) for row in rows}


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    attempts = [attempt for *_, attempt, _ in json.loads(row["renditions"]).values()]
    debts = sorted(row["debts"].split(",")) if row["debts"] else []
    return {"debts": debts, "published": max(attempts, default=None)}


def named_by(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of an image's renditions by their files, such as `1/image.jpeg`."""
    stored = json.loads(row["renditions"])
    return {f"{attempt}/{name}": str(digest) for name, (_, _, _, digest, attempt, _) in stored.items()}


def is_at_rest(row: Mapping[str, Any]) -> bool:
    """Tell whether nothing is to be done for an image: no work, no debts."""
    return row["work"] is None and not row["debts"]


def forget_ledger(service: Service) -> None:
    """Remove the ledger's tables and all that is in them."""
    if is_on_postgresql(service):
        for statement in ("DROP SCHEMA public CASCADE", "CREATE SCHEMA public"):
            query(service, statement)
    for file in service.data.glob("ledger.sqlite3*"):
        file.unlink()


def row_of(service: Service, image_id: str) -> dict[str, Any]:
    """Return an image's row."""
    return rows_of(service)[image_id]


def status_of(service: Service, image_id: str) -> str:
    """Return an image's status as the API tells it."""
    return str(service.get(f"/images/{image_id}").json["status"])


def files_of(service: Service, image_id: str = "") -> list[str]:
    """Return the paths below the storage of an image's files; without an id, of all files and drafts."""
    kinds = ("originals", "renditions") if image_id else ("originals", "renditions", "drafts")
    found = [
        str(path.relative_to(disk))
        for disk in service.disks()
        for kind in kinds
        for path in (disk / kind).rglob("*")
        if path.is_file()
    ]
    if is_apart():
        found += [key for kind in ("originals", "renditions") for key in _in_store(service, kind).files()]
    return sorted(path for path in found if image_id in path)


def original_of(service: Service, image_id: str) -> Any:
    """Return where an image's original is, or was: a path, or what does the same in an object store."""
    if is_apart():
        return _in_store(service, "originals", image_id)
    return service.data / "originals" / image_id[:5] / image_id[5:8] / image_id


def renditions_of(service: Service, image_id: str) -> Any:
    """Return the folder that holds an image's attempts, a folder each: a path, or what does the same."""
    if is_apart():
        return _in_store(service, "renditions", image_id)
    return service.data / "renditions" / image_id[:5] / image_id[5:8] / image_id


def content_of(service: Service, path: str) -> bytes:
    """Return what is in one of the files that `files_of` names."""
    found: Any = _in_store(service, path) if is_apart() else service.data / path
    return bytes(found.read_bytes())


def _in_store(service: Service, *path: str) -> Any:
    """Return what is there in the object store; it does what a path does, as far as tests ask for it."""
    from tests.apart.objects import StoredFile, store_of

    return StoredFile(store_of(service.env), PurePosixPath(*path))


def attempts_of(service: Service, image_id: str) -> list[str]:
    """Return the attempts at an image that have a folder."""
    folder = renditions_of(service, image_id)
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def holdings_of(service: Service) -> tuple[list[str], list[str]]:
    """Return everything that is stored: files and rows."""
    return files_of(service), sorted(rows_of(service))


def lines_of(service: Service, **wanted: object) -> list[dict[str, Any]]:
    """Return the lines of the log that have these members; the last may not be complete yet."""
    whole = service.output.rpartition("\n")[0]
    lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return [line for line in lines if wanted.items() <= line.items()]


def comparable(answer: Response) -> tuple[int, Mapping[str, str], bytes]:
    """Return what two equal answers have in common: all but their date, and whether it was a copy."""
    headers = {name: value for name, value in answer.headers.items() if name not in _MAY_DIFFER}
    return answer.status, headers, answer.body
