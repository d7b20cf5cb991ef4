"""The doctor: compares ledger and storage, reports what is wrong and, if asked to, mends it.

Web and workers may run meanwhile. A walk through all rows and files finds suspects. Each suspect is then examined
again, and is skipped if its row changes during that. Only findings of this second look count. The doctor needs no
Redis: the sweep enqueues the renditions that it requests.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import AsyncIterator, Mapping

from shared.errors import NoSuchKey, StorageUnavailable
from shared.identity import holds_marker
from shared.images import Image, Lane, Original, Work
from shared.ledger import Identity, Ledger
from shared.renditions import Rendition, original_key, renditions_prefix
from shared.storage import Storage, Stored
from worker.doctor.diagnosis import (
    Finding,
    Kind,
    Snapshot,
    birth_of,
    diagnose,
    expected_keys,
    source_of,
)
from worker.doctor.report import Outcome, Report

#: Rows that are read at a time.
_PAGE = 500
#: The most images whose renditions one run requests. They are made after the run.
MOST_ASKED_FOR = 1000

_REMOVED = Outcome(True, "removed")


class Doctor:
    """Examines a ledger and its storage. Changes nothing unless `mend` is set."""

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        identity: Identity,
        report: Report,
        *,
        keep_originals: bool,
        digests: bool = False,
        mend: bool = False,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._identity = identity
        self._report = report
        self._keep_originals = keep_originals
        self._digests = digests
        self._mend = mend
        self._asked_for = 0

    async def examine(self) -> None:
        """Examine all images that exist at the start, and report or mend what is wrong."""
        began = await self._ledger.now()
        async for snapshot in _side_by_side(self._rows(), self._files("originals"), self._files("renditions")):
            if birth_of(snapshot.id) > began:
                # Skip later uploads: with them this would never end on a busy service.
                break
            # Digests are compared at the second look only, so with `digests` each row is a suspect.
            if self._findings(snapshot) or (self._digests and snapshot.row is not None):
                await self._examine(snapshot.id)

    # The walk: three streams in the order of ids. Rows and files may change during the walk.

    async def _rows(self) -> AsyncIterator[Snapshot]:
        after = None
        while page := await self._ledger.list_all(after, _PAGE):
            for row in page:
                yield Snapshot(row.id, row)
            after = page[-1].id
            self._report.rows += len(page)

    async def _files(self, kind: str) -> AsyncIterator[Snapshot]:
        files: dict[str, Stored] = {}
        current = ""
        async for stored in self._storage.listing(kind):
            image_id = stored.key.split("/")[1]
            if image_id != current and files:
                yield Snapshot(current, files=files)
                files = {}
            current = image_id
            files[stored.key] = stored
            self._report.files += 1
        if files:
            yield Snapshot(current, files=files)

    # One image, at one moment

    async def _examine(self, image_id: str) -> None:
        """Examine one image at one moment. An image whose row changes meanwhile is left to another run."""
        row = await self._ledger.get(image_id)
        prefixes = (original_key(image_id), renditions_prefix(image_id))
        files = {stored.key: stored for prefix in prefixes async for stored in self._storage.listing(prefix)}
        altered = await self._altered(row, files) if row is not None and self._digests else frozenset()
        if _standing(row) != _standing(await self._ledger.get(image_id)):
            return
        if not await holds_marker(self._storage, self._identity):
            raise StorageUnavailable("the storage has lost its marker, and with it all that it held")
        snapshot = Snapshot(image_id, row, files, altered)
        findings = self._findings(snapshot)
        outcomes = await self._mended(snapshot, findings) if self._mend else {}
        for finding in findings:
            self._report.add(finding, outcomes.get(finding, Outcome()))

    def _findings(self, snapshot: Snapshot) -> list[Finding]:
        return diagnose(snapshot, time.time(), self._keep_originals)

    async def _altered(self, image: Image, files: Mapping[str, Stored]) -> frozenset[str]:
        """Return the keys of files that have the expected length, but another digest."""
        expected = {
            key: what for key, what in expected_keys(image).items() if key in files and files[key].bytes == what.bytes
        }
        return frozenset([key for key, what in expected.items() if not await self._is_whole(key, what)])

    async def _is_whole(self, key: str, expected: Original | Rendition) -> bool:
        digest = hashlib.sha256()
        try:
            async for piece in self._storage.stream(key, 0, expected.bytes - 1):
                digest.update(piece)
        except NoSuchKey:
            return False
        return digest.hexdigest() == expected.sha256

    # Mending

    async def _mended(self, snapshot: Snapshot, findings: list[Finding]) -> dict[Finding, Outcome]:
        """Mend what can be mended. Findings without an outcome were not touched."""
        row = snapshot.row
        if row is None:
            for finding in findings:
                is_file = finding.kind is Kind.ORIGINAL_WITHOUT_ROW
                await (self._storage.delete if is_file else self._storage.delete_folder)(finding.key)
            return dict.fromkeys(findings, _REMOVED)
        outcomes: dict[Finding, Outcome] = {}
        if stale := [finding for finding in findings if finding.kind in (Kind.STALE_ATTEMPT, Kind.STALE_FILE)]:
            row, outcome = await self._without_stale(row, stale)
            outcomes |= dict.fromkeys(stale, outcome)
        if broken := [finding for finding in findings if finding.kind is Kind.RENDITION_BROKEN]:
            outcomes |= dict.fromkeys(broken, await self._made_again(snapshot, row))
        return outcomes

    async def _without_stale(self, image: Image, stale: list[Finding]) -> tuple[Image, Outcome]:
        """Remove stale files. Returns the row after that."""
        names = [finding.key.split("/")[2] for finding in stale]
        numbers = [int(name) for name in names if re.fullmatch(r"[1-9]\d{0,8}", name)]
        # Add the debt first: if this process dies, the sweep continues. No later attempt gets one of these numbers.
        owing = await self._ledger.owe_leftovers(image, max(numbers, default=0))
        if owing is None:
            return image, Outcome(False, "left: the image is at work again")
        for finding in stale:
            is_file = finding.kind is Kind.STALE_FILE
            await (self._storage.delete if is_file else self._storage.delete_folder)(finding.key)
        await self._ledger.paid(owing.debts)
        return owing, _REMOVED

    async def _made_again(self, snapshot: Snapshot, image: Image) -> Outcome:
        if image.work is Work.RENDITIONS:
            return Outcome(True, "is asked for already")
        if self._asked_for == MOST_ASKED_FOR:
            return Outcome(False, f"left: {MOST_ASKED_FOR:,} images are asked for already, run again later")
        source = source_of(snapshot, image)
        if not await self._is_whole(source, expected_keys(image)[source]):
            return Outcome(False, f"left: {source} has another digest, and nothing else to make it of is left")
        wanted = await self._ledger.request_renditions(image, Lane.BULK)
        if wanted is None:
            return Outcome(False, "left: the image is at work, run again in a minute")
        self._asked_for += 1
        return Outcome(True, "will be made again")


def _standing(row: Image | None) -> object:
    """Return the parts of a row that show whether a commit has changed the image's files."""
    return row and (row.status, row.attempt, row.work, row.worker, row.renditions, row.debts)


async def _side_by_side(*streams: AsyncIterator[Snapshot]) -> AsyncIterator[Snapshot]:
    """Merge streams that are sorted by id. Yields each id once, with its row and files from all streams."""
    heads = [await anext(stream, None) for stream in streams]
    while ids := [head.id for head in heads if head is not None]:
        snapshot = Snapshot(min(ids))
        for number, head in enumerate(heads):
            if head is not None and head.id == snapshot.id:
                snapshot = Snapshot(snapshot.id, snapshot.row or head.row, {**snapshot.files, **head.files})
                heads[number] = await anext(streams[number], None)
        yield snapshot
