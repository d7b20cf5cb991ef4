"""The doctor: compares ledger and storage, reports what is wrong and, if asked to, mends it.

It is safe while web and workers run. A walk through all rows and files finds suspects. Each suspect is then looked at
again, at one moment, and only what is wrong then counts. Needs no Redis: the sweep finds what is to be made again.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from shared.errors import NoSuchKey, StorageUnavailable
from shared.identity import holds_marker
from shared.images import Image, Original, Owed, Rendition, original_key, renditions_prefix
from shared.ledger import Identity, Ledger, Taken
from shared.storage import Storage, Stored
from worker.doctor.diagnosis import (
    MADE_AGAIN,
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
#: Images whose renditions are made again after one run. They are rendered before new uploads, which must not wait long.
MOST_ASKED_FOR = 1000

_REMOVED = Outcome(True, "removed")


class Doctor:
    """Examines a ledger and its storage. Changes nothing unless told to mend."""

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
        """Look at everything that exists by now, and report or mend what is wrong."""
        began = await self._ledger.now()
        async for snapshot in _side_by_side(self._rows(), self._files("originals"), self._files("renditions")):
            if birth_of(snapshot.id) > began:
                # Later uploads are left out, or a busy service would keep this going for ever.
                break
            if self._findings(await self._with_digests(snapshot)):
                await self._examine(snapshot.id)

    # The walk: three streams in the order of ids. Rows and files change meanwhile

    async def _rows(self) -> AsyncIterator[Snapshot]:
        after = None
        while page := await self._ledger.list_all(after, _PAGE):
            for row in page:
                yield Snapshot(row.id, row)
            after = page[-1].id
            self._report.looked_at(rows=len(page))

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
            self._report.looked_at(files=1)
        if files:
            yield Snapshot(current, files=files)

    # One image, at one moment

    async def _examine(self, image_id: str) -> None:
        snapshot = await self._look(image_id)
        findings = self._findings(snapshot)
        outcomes = await self._mended(snapshot, findings) if self._mend else {}
        for finding in findings:
            self._report.add(finding, outcomes.get(finding, Outcome()))

    async def _look(self, image_id: str) -> Snapshot:
        """Look at one image at one moment: its files are listed until its row did not change meanwhile."""
        row = await self._ledger.get(image_id)
        while True:
            prefixes = (original_key(image_id), renditions_prefix(image_id))
            files = {stored.key: stored for prefix in prefixes async for stored in self._storage.listing(prefix)}
            snapshot = await self._with_digests(Snapshot(image_id, row, files))
            latest = await self._ledger.get(image_id)
            if _standing(row) == _standing(latest):
                break
            row = latest
        if not await holds_marker(self._storage, self._identity):
            raise StorageUnavailable("the storage has lost its marker, and with it all that it held")
        return replace(snapshot, row=latest)

    def _findings(self, snapshot: Snapshot) -> list[Finding]:
        return diagnose(snapshot, time.time(), self._keep_originals)

    async def _with_digests(self, snapshot: Snapshot) -> Snapshot:
        if not self._digests or snapshot.row is None:
            return snapshot
        # A file of another length is torn, whatever its digest.
        suspects = {
            key: what
            for key, what in expected_keys(snapshot.row).items()
            if key in snapshot.files and snapshot.files[key].bytes == what.bytes
        }
        altered = [key for key, what in suspects.items() if not await self._is_whole(key, what)]
        return replace(snapshot, altered=frozenset(altered))

    async def _is_whole(self, key: str, expected: Original | Rendition) -> bool:
        try:
            return await self._storage.digest(key) == (expected.bytes, expected.sha256)
        except NoSuchKey:
            return False

    # Mending

    async def _mended(self, snapshot: Snapshot, findings: list[Finding]) -> dict[Finding, Outcome]:
        """Mend what can be mended. `image` was read a moment ago."""
        outcomes: dict[Finding, Outcome] = {}
        for finding in findings:
            if finding.kind is Kind.ORIGINAL_WITHOUT_ROW:
                await self._storage.delete(finding.key)
                outcomes[finding] = _REMOVED
            elif finding.kind is Kind.RENDITIONS_WITHOUT_ROW:
                await self._storage.delete_folder(finding.key)
                outcomes[finding] = _REMOVED
        if snapshot.row is not None:
            stale = [finding for finding in findings if finding.kind is Kind.STALE_ATTEMPT]
            if stale:
                outcomes |= dict.fromkeys(stale, await self._without_attempts(snapshot.row, stale))
            broken = [finding for finding in findings if finding.kind in MADE_AGAIN]
            if broken:
                outcomes |= dict.fromkeys(broken, await self._made_again(snapshot, snapshot.row))
        return outcomes

    async def _without_attempts(self, image: Image, stale: list[Finding]) -> Outcome:
        names = [finding.key.rpartition("/")[2] for finding in stale]
        numbers = [int(name) for name in names if re.fullmatch(r"[1-9]\d{0,8}", name)]
        # The debt comes first: if this process dies, the sweep goes on. No later attempt gets one of these numbers.
        owing = await self._ledger.owe_leftovers(image, max(numbers, default=0))
        if owing is None:
            return Outcome(False, "left: the image is at work again")
        for finding in stale:
            await self._storage.delete_folder(finding.key)
        await self._ledger.leftovers_removed(owing)
        return _REMOVED

    async def _made_again(self, snapshot: Snapshot, image: Image) -> Outcome:
        if image.owed is Owed.THUMBNAILS:
            return Outcome(True)
        if self._asked_for == MOST_ASKED_FOR:
            return Outcome(False, f"left: {MOST_ASKED_FOR:,} images are asked for already, run again later")
        source = source_of(snapshot, image)
        if not await self._is_whole(source, expected_keys(image)[source]):
            return Outcome(False, f"left: {source} has another digest, and nothing else to make it of is left")
        wanted = await self._ledger.request_thumbnails(image.id)
        if wanted is None:
            return Outcome(False, "left: the image is at work, run again in a minute")
        self._asked_for += 1
        # Due at once, so that the next pass of the sweep enqueues it, instead of one in ten seconds.
        await self._ledger.give_back([Taken(wanted, wanted.created)])
        return Outcome(True, "will be made again")


def _standing(row: Image | None) -> object:
    """Return what differs after every commit that changes which files belong to the image."""
    return row and (row.status, row.attempt, row.published, row.owed)


async def _side_by_side(*streams: AsyncIterator[Snapshot]) -> AsyncIterator[Snapshot]:
    """Merge streams that are in the order of ids: yield each id once, with everything that they have of it."""
    heads = [await anext(stream, None) for stream in streams]
    while ids := [head.id for head in heads if head is not None]:
        snapshot = Snapshot(min(ids))
        for number, head in enumerate(heads):
            if head is not None and head.id == snapshot.id:
                snapshot = Snapshot(snapshot.id, snapshot.row or head.row, {**snapshot.files, **head.files})
                heads[number] = await anext(streams[number], None)
        yield snapshot
