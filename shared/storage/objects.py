"""Storage in an object store, by obstore: S3 and compatible stores, Google's, Azure's. Drafts are on a local disk.

Every exchange has a time limit, which includes retries. Our errors contain only the status and the code of the
library's errors. The library's texts repeat requests, which may hold secrets.

This module is longer than 250 lines: it has all operations of the interface, with one treatment of limits and errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from shared.cancellation import to_the_end
from shared.errors import AsgilookError, NoSuchKey, SettingsError, StorageConflict, StorageFull, StorageUnavailable
from shared.storage import Draft, Stored
from shared.storage.disk import DiskStorage
from shared.storage.disk_draft import DiskDraft
from shared.storage.files import PIECE_BYTES, in_thread, translated

if TYPE_CHECKING:
    from obstore import GetResult, ObjectMeta, PutMode

#: Seconds that one exchange may take, with its retries, in addition to the time for its bytes.
PATIENCE_SECONDS = 5.0
#: Bytes per second that a put must reach after those seconds.
LEAST_RATE = 1024 * 1024
#: A longer put is sent in parts of this length.
PART_BYTES = 5 * 1024 * 1024
#: The most parts of one put that are sent at the same time.
_PARTS_AT_A_TIME = 2
#: The most puts of this process at the same time. Each takes up to 20 MB of memory. Others wait as files.
PUTS_AT_A_TIME = 6
#: Seconds from the first byte of a part to its reply.
_PART_SECONDS = 15.0
_DRAFT_SECONDS = 3600.0

_CLIENT: dict[str, Any] = {
    "connect_timeout": timedelta(seconds=2),
    "read_timeout": timedelta(seconds=_PART_SECONDS),
    # The limit of a whole request with its body. Our own limits are shorter and depend on the length.
    "timeout": timedelta(hours=1),
}
_BACKOFF: dict[str, Any] = {
    "init_backoff": timedelta(milliseconds=100),
    "max_backoff": timedelta(seconds=1),
    "base": 2,
}
_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
#: Our keys. Listings skip everything else in the bucket.
_OURS = re.compile(rf"originals/{_UUID}|renditions/{_UUID}/.+|uploads/{_UUID}/\d+|markers/\w+")
#: In a store's reply: the bucket does not exist.
_NO_BUCKET = re.compile(r"<Code>(NoSuchBucket|ContainerNotFound)<")
#: In a store's reply: the space of the store or of the account is used up.
_FULL = re.compile(r"status code: 507|<Code>(QuotaExceeded|XMinioStorageFull|InsufficientStorage)")


class ObjectStorage:
    """The backend of `Storage` below one address like s3://bucket/prefix; `local` is a folder of this machine."""

    def __init__(
        self, url: str, local: Path, env: Mapping[str, str] = os.environ, patience: float = PATIENCE_SECONDS
    ) -> None:
        self._patience = patience
        self._local = DiskStorage(local)
        self._drafts = local / "drafts"
        client, config = dict(_CLIENT), {}
        if url.startswith("s3://"):
            # An address without TLS is allowed: it is on this machine or in a private network.
            client["allow_http"] = _s3_endpoint(env).startswith("http://")
            # With a checksum, the store checks the bytes before it acknowledges them.
            config["checksum_algorithm"] = env.get("AWS_CHECKSUM_ALGORITHM") or "SHA256"
        # A little less than our own limit, so that the error is the last refusal and not a time-out.
        retry: dict[str, Any] = {
            "max_retries": 10,
            "retry_timeout": timedelta(seconds=patience * 0.8),
            "backoff": _BACKOFF,
        }
        try:
            self._store: Any = from_url(url, config=config or None, client_options=client, retry_config=retry)  # type: ignore[call-overload] # one of three kinds
        except (BaseError, ValueError) as exc:
            # Pass on only the name of the library's error: its text may repeat the values of variables.
            name = re.search(r"source: ([A-Z]\w+)", str(exc))
            raise SettingsError(
                "ASGI_LOOK_STORAGE: the store's own variables (AWS_…, GOOGLE_…, AZURE_STORAGE_…) do not suffice: "
                f"{name[1] if name else type(exc).__name__}"
            ) from None
        self._puts = asyncio.Semaphore(PUTS_AT_A_TIME)
        #: The lengths of the puts that are running.
        self._under_way: list[int] = []

    async def prepare(self) -> None:
        await self._local.prepare()
        # A machine without workers has no sweep to remove the drafts of a crash.
        await self._local.sweep_drafts(_DRAFT_SECONDS)
        try:
            async for _ in self._listed("markers"):
                break
        except StorageUnavailable as exc:
            raise StorageUnavailable(f"ASGI_LOOK_STORAGE: the store cannot be used: {exc}") from None

    async def draft(self) -> DiskDraft:
        return await self._local.draft()

    async def drafts(self, count: int) -> list[DiskDraft]:
        return await self._local.drafts(count)

    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        await to_the_end(self._keep(drafts, "overwrite"))

    async def keep_new(self, key: str, draft: Draft) -> None:
        await to_the_end(self._keep({key: draft}, "create"))

    async def _keep(self, drafts: Mapping[str, Draft], mode: PutMode) -> None:
        flushed: dict[str, DiskDraft] = {}
        for key, draft in drafts.items():
            assert isinstance(draft, DiskDraft)  # noqa: S101 - a draft of another storage is a programming error
            await draft.flush()
            flushed[key] = draft
        await _all_of(self._put(key, draft, mode) for key, draft in flushed.items())

    async def _put(self, key: str, draft: DiskDraft, mode: PutMode) -> None:
        media_type = "image/jpeg" if key.startswith("renditions/") else "application/octet-stream"
        with translated(draft.path):
            length = draft.path.stat().st_size
        # Wait as long as the running puts may take: a long queue does not mean that the store is away.
        waits = self._patience + (length + max(self._under_way, default=0)) / LEAST_RATE
        try:
            async with asyncio.timeout(waits):
                await self._puts.acquire()
        except TimeoutError:
            raise StorageUnavailable(f"the puts before it did not end in {waits:.0f} s: {key}") from None
        self._under_way.append(length)
        try:
            async with _told(key, self._patience + length / LEAST_RATE):
                await obstore.put_async(
                    self._store,
                    key,
                    draft.path,
                    attributes={"Content-Type": media_type},
                    mode=mode,
                    chunk_size=PART_BYTES,
                    max_concurrency=_PARTS_AT_A_TIME,
                )
        finally:
            self._under_way.remove(length)
            self._puts.release()

    async def exists(self, key: str) -> bool:
        return await self._head(key) is not None

    async def _head(self, key: str) -> ObjectMeta | None:
        try:
            async with _told(key, self._patience, absent=NoSuchKey):
                return await obstore.head_async(self._store, key)
        except NoSuchKey:
            return None

    async def read(self, key: str) -> bytes:
        return b"".join([piece async for piece in await self._get(key)])

    async def stream(self, key: str, first: int, last: int) -> AsyncIterator[bytes]:
        async for piece in await self._get(key, first, last):
            yield piece

    async def _get(self, key: str, first: int = 0, last: int | None = None) -> AsyncIterator[bytes]:
        """Begin to read the bytes from `first` to `last` (both included), by default all. Raises NoSuchKey."""
        options: Any = {} if last is None else {"range": (first, last + 1)}
        async with _told(key, self._patience, absent=NoSuchKey):
            return self._pieces(key, await obstore.get_async(self._store, key, options=options))

    async def _pieces(self, key: str, result: GetResult) -> AsyncIterator[bytes]:
        first, end = result.range
        left = end - first
        chunks = result.stream(min_chunk_size=PIECE_BYTES // 4)
        while left > 0:
            async with _told(key, self._patience):
                try:
                    chunk = await chunks.__anext__()
                except StopAsyncIteration:
                    break
            left -= len(chunk)
            for start in range(0, len(chunk), PIECE_BYTES):
                yield chunk[start : start + PIECE_BYTES]
        if left:
            raise StorageUnavailable(f"{left} bytes are missing at the end: {key}")

    async def signed_url(self, key: str, seconds: float) -> str:
        async with _told(key, self._patience):
            return str(await obstore.sign_async(self._store, "GET", key, timedelta(seconds=seconds)))

    async def open_local(self, key: str) -> BinaryIO:
        pieces = await self._get(key)
        file = await in_thread(self._drafts, lambda: tempfile.NamedTemporaryFile(dir=self._drafts))  # noqa: SIM115 - closed below

        def reopened() -> BinaryIO:
            file.flush()
            return open(file.name, "rb")

        try:
            async for piece in pieces:
                await in_thread(self._drafts, lambda piece=piece: file.write(piece))  # type: ignore[misc] # a default is no argument
            return await in_thread(self._drafts, reopened)
        finally:
            # Closing removes the name. The bytes stay until the caller closes its own descriptor.
            with contextlib.suppress(StorageUnavailable):
                await in_thread(self._drafts, file.close)

    async def folders(self, prefix: str) -> list[str]:
        async with _told(prefix, self._patience):
            listed = await obstore.list_with_delimiter_async(self._store, prefix)
        return sorted(folder.rpartition("/")[2] for folder in listed["common_prefixes"])

    async def listing(self, prefix: str) -> AsyncIterator[Stored]:
        if prefix.startswith("originals/") and (meta := await self._head(prefix)) is not None:
            # The listing of an object's own name does not contain it: stores list only below whole folders.
            yield _stored(meta)
        async for meta in self._listed(prefix):
            if _OURS.fullmatch(meta["path"]):
                yield _stored(meta)

    async def _listed(self, prefix: str) -> AsyncIterator[ObjectMeta]:
        pages = obstore.list(self._store, prefix, chunk_size=1000)
        while True:
            async with _told(prefix, self._patience):
                try:
                    page = await pages.__anext__()
                except StopAsyncIteration:
                    return
            for meta in page:
                yield meta

    async def delete(self, key: str) -> None:
        await to_the_end(self._delete([key]))

    async def delete_folder(self, prefix: str) -> None:
        await to_the_end(self._delete_folder(prefix))

    async def _delete_folder(self, prefix: str) -> None:
        # A late attempt may add a file meanwhile, so make up to three passes.
        for _ in range(3):
            keys = [meta["path"] async for meta in self._listed(prefix)]
            if not keys:
                return
            await self._delete(keys)

    async def _delete(self, keys: list[str]) -> None:
        # Some stores answer 404 for a missing key.
        with contextlib.suppress(NoSuchKey):
            async with _told(keys[0], self._patience, absent=NoSuchKey):
                # A single key is deleted without the bulk request, which some stores lack.
                await obstore.delete_async(self._store, keys if len(keys) > 1 else keys[0])

    async def free_bytes(self) -> int:
        # The disk of this machine counts, because an upload is first a draft there.
        return await in_thread(self._drafts, lambda: shutil.disk_usage(self._drafts).free)

    async def sweep_drafts(self, older_than_seconds: float) -> int:
        return await self._local.sweep_drafts(older_than_seconds)

    async def close(self) -> None:
        """Do nothing: the library closes idle connections by itself."""


async def _all_of(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all, then raise the first error: nothing may run while the caller cleans up."""
    outcomes = await asyncio.gather(*work, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def _s3_endpoint(env: Mapping[str, str]) -> str:
    """Return the address of a store that is not Amazon's. obstore reads the variables in the same order."""
    return env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or env.get("AWS_ENDPOINT") or ""


def _stored(meta: ObjectMeta) -> Stored:
    return Stored(meta["path"], meta["size"], meta["last_modified"].timestamp())


@contextlib.asynccontextmanager
async def _told(about: str, seconds: float, absent: type[AsgilookError] = StorageUnavailable) -> AsyncIterator[None]:
    """Limit the block to `seconds`, and translate the library's errors to ours without their texts."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StorageUnavailable(f"no answer in {seconds:.0f} s: {about}") from None
    except AlreadyExistsError:
        raise StorageConflict(f"something is at {about}") from None
    except FileNotFoundError as exc:
        if _NO_BUCKET.search(str(exc)):
            raise StorageUnavailable(f"there is no such bucket: {about}") from None
        raise absent(f"nothing at {about}") from None
    except Exception as exc:  # a panic of the library has no class of its own
        error = StorageFull if _FULL.search(str(exc)) else StorageUnavailable
        raise error(f"{_reason(exc)}: {about}") from None


def _reason(exc: Exception) -> str:
    """Return the parts of a library's error that are useful and cannot be secret."""
    text = str(exc)
    patterns = (r"status code: (\d{3} [A-Z][A-Za-z ]*)", r"<Code>(\w{1,60})</Code>", r"- (HTTP error: [a-z ]+)")
    found = [match[1] for pattern in patterns if (match := re.search(pattern, text))]
    return ", ".join(found) or type(exc).__name__
