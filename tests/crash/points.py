"""Every point at which a process can die, from the first byte of an upload to the last step of settling, by its name.

Each is a moment between two steps that leave something behind: a file, a commit, a key in Redis. Left out is what
leaves the same as a point that is here:

- the inside of a transaction, but for those of uploads, claims and publications: without its commit it never was;
- after a method of the ledger, where the point after its commit is here;
- the folder made for an original: it is empty, and the next upload's as well;
- in an object store what a store does in one step: a put, a deletion of many keys;
- the sweep's own payments: it calls what a commit's author calls, and only what it takes first differs;
- the twentieth loss, and renditions given up: one commit each, after which the sweep finds a debt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.integration.service import is_apart

#: What happens to a worker's child, or to itself, so that it comes to a point.
Trouble = Literal["", "frozen child", "killed child", "crashed child", "told to stop", "preempted"]

#: Where services have machines of their own, the ledger is on PostgreSQL and the storage an object store.
_APART = is_apart()
_COMMIT = (
    "sqlalchemy.dialects.postgresql.asyncpg:AsyncAdapt_asyncpg_connection.commit"
    if _APART
    else "aiosqlite.core:Connection.commit"
)
_EXECUTE = "sqlalchemy.ext.asyncio.engine:AsyncConnection.execute"
_STORAGE = "shared.storage.objects:ObjectStorage" if _APART else "shared.storage.disk:DiskStorage"
_DRAFT = "shared.storage.disk_draft:DiskDraft"
_LEDGER = "shared.ledger.ledger:Ledger"
_RECEIVE = "shared.intake:Intake.receive"
_SERVE = "api.server.guard:Guard._serve"
_DELETE = "api.images:ImageRecord.on_delete"
_RETRY = "api.images:Retry.on_post"
_MISSING = "api.renditions.resources:Renditions._missing"
_SESSION = "worker.renderer.session:RenderSession"
WORK = "worker.jobs:Jobs.work"
_TOKENS_CHANGED = "shared.redis.response_cache:ResponseCache.change_tokens"
_ANNOUNCE = "shared.redis.notices:Announcer.announce"
_ENQUEUE = "shared.redis.queue:Queue.enqueue"
_REMOVE_LEFTOVERS = "shared.settling:Settling._remove_leftovers"
_ORIGINAL = "originals"
_ALL = "originals renditions"


@dataclass(frozen=True)
class Point:
    """A moment: a call of a function, as an `Arm` tells it; `{image}` stands for the image's id.

    `files` are the kinds of files that the image has at that moment. `ends` is what becomes of it without anybody's
    help, `attempt` the attempt with which it does, `leases` how many run out on the way. A client that `is_told` has
    got its 202 by then; the others have got nothing.
    """

    name: str
    when: Literal["before", "after"]
    function: str
    within: str = ""
    call: int = 1
    about: str = "{image}"
    files: str = _ORIGINAL
    ends: Literal["absent", "ready", "failed", "deleted"] = "ready"
    attempt: int = 1
    leases: int = 0
    is_told: bool = False
    trouble: Trouble = ""
    #: Whether the file can be rendered.
    is_whole: bool = True
    #: Whether it is a worker that takes jobs, and not one that is at its sweep only.
    consumes: bool = True
    #: The point at which another process died before, and so left to this one what it does.
    prior: Point | None = None
    #: The file that a worker is asked to make; all of them unless told.
    wanted: str = ""
    #: The kind of storage that comes to this point, if not both do.
    only: Literal["", "disk", "objects"] = ""

    def __str__(self) -> str:
        return self.name


def _here(*points: Point) -> tuple[Point, ...]:
    """Return those points to which the storage at hand comes."""
    return tuple(point for point in points if point.only in ("", "objects" if _APART else "disk"))


#: What an upload leaves when its original is kept: a rename takes the draft away, a put does not.
_KEPT = "drafts originals" if _APART else _ORIGINAL


def _upload(
    name: str,
    when: Literal["before", "after"],
    function: str,
    files: str,
    *,
    within: str = _RECEIVE,
    call: int = 1,
    ends: Literal["absent", "ready"] = "absent",
    only: Literal["", "disk", "objects"] = "",
) -> Point:
    return Point(f"upload: {name}", when, function, within, call, about="", files=files, ends=ends, only=only)


#: A web process takes an upload in.
UPLOADING = _here(
    _upload("the draft is made", "after", f"{_STORAGE}.draft", "drafts"),
    _upload("the first chunk is written", "after", f"{_DRAFT}.write", "drafts"),
    _upload("the second chunk is written", "after", f"{_DRAFT}.write", "drafts", call=2),
    _upload("the whole body is written", "before", f"{_STORAGE}.keep", "drafts"),
    _upload("the draft is fsynced", "after", f"{_DRAFT}.sync", "drafts", only="disk"),
    _upload("its folder is made", "before", f"{_DRAFT}.rename", "drafts", only="disk"),
    _upload("it is renamed, its folder not yet fsynced", "after", f"{_DRAFT}.rename", _ORIGINAL, only="disk"),
    _upload("it is about to be put", "before", "obstore:put_async", "drafts", only="objects"),
    _upload("the original is kept", "after", f"{_STORAGE}.keep", _KEPT),
    _upload("its row is inserted, not committed", "before", _COMMIT, _KEPT, within=f"{_LEDGER}.add"),
    _upload("its row is committed", "after", _COMMIT, _KEPT, within=f"{_LEDGER}.add", ends="ready"),
    _upload("it is enqueued", "after", _ENQUEUE, _ORIGINAL, within=_SERVE, ends="ready"),
    Point(
        "upload: the answer's start is with the server",
        "after",
        "api.server.guard:_Response.send",
        _SERVE,
        about="'POST'",
    ),
    Point("upload: the answer is with the server", "before", "api.server.access_log:log", about="'POST'", is_told=True),
)

CLAIMED = Point("conversion: claimed", "after", _COMMIT, f"{_LEDGER}.claim", attempt=2, leases=1)
PUBLISHED = Point("settling: published, the tokens not changed", "after", _COMMIT, f"{_LEDGER}.publish", files=_ALL)
LEFTOVERS_REMOVED = Point(
    "renditions: all superseded files are removed, the debt not paid",
    "before",
    f"{_LEDGER}.paid",
    WORK,
    call=2,
    files=_ALL,
    attempt=2,
)


def _lost(
    name: str,
    when: Literal["before", "after"],
    function: str,
    files: str = _ORIGINAL,
    call: int = 1,
    only: Literal["", "disk", "objects"] = "",
) -> Point:
    """A point within an attempt: its lease runs out, and a second one publishes."""
    return Point(f"conversion: {name}", when, function, WORK, call, files=files, attempt=2, leases=1, only=only)


#: A worker converts an image.
CONVERTING = _here(
    Point("conversion: taken from the queue", "before", "worker.consumer:Consumer._run_job"),
    Point("conversion: begun, not claimed", "before", WORK),
    Point("conversion: claimed, not committed", "before", _COMMIT, f"{_LEDGER}.claim"),
    CLAIMED,
    _lost("the original is open", "after", f"{_STORAGE}.open_local"),
    _lost("the child has read the header", "after", f"{_SESSION}.read_header"),
    _lost("one draft is made", "after", f"{_DRAFT}.__init__", "drafts originals"),
    _lost("all drafts are made", "after", f"{_STORAGE}.drafts", "drafts originals"),
    _lost("the full-size JPEG is copied", "after", f"{_SESSION}._take_over", "drafts originals"),
    _lost("the child has rendered", "after", f"{_SESSION}.render", "drafts originals"),
    _lost("its slot is left", "before", f"{_STORAGE}.keep", "drafts originals"),
    _lost("one draft is fsynced, perhaps more", "after", f"{_DRAFT}.sync", "drafts originals", only="disk"),
    _lost("the drafts are fsynced, their folder made", "before", f"{_DRAFT}.rename", "drafts originals", only="disk"),
    _lost("the first of three is renamed", "after", f"{_DRAFT}.rename", "drafts originals renditions", only="disk"),
    _lost("all are renamed, their folder not fsynced", "after", f"{_DRAFT}.rename", _ALL, call=3, only="disk"),
    _lost("one of three is put", "after", f"{_STORAGE}._put", "drafts originals renditions", only="objects"),
    _lost("all are put", "after", f"{_STORAGE}._put", "drafts originals renditions", call=3, only="objects"),
    _lost("all are kept", "before", f"{_LEDGER}.publish", _ALL),
    Point(
        "publication: the counter is raised, the row not ready, not committed",
        "before",
        _EXECUTE,
        f"{_LEDGER}.publish",
        call=2,
        files=_ALL,
        attempt=2,
        leases=1,
    ),
    Point(
        "publication: the row is ready, nothing owed, not committed",
        "before",
        "shared.ledger.ledger:_owe",
        f"{_LEDGER}.publish",
        files=_ALL,
        attempt=2,
        leases=1,
    ),
    Point(
        "publication: what it leaves to be done is owed, not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.publish",
        files=_ALL,
        attempt=2,
        leases=1,
    ),
    PUBLISHED,
    Point(
        "settling: the tokens are changed, the debt not paid",
        "after",
        _TOKENS_CHANGED,
        WORK,
        files=_ALL,
    ),
    Point("settling: the tokens are paid for, no notice sent", "before", _ANNOUNCE, WORK, files=_ALL),
    Point("settling: the notice is sent, the debt not paid", "after", _ANNOUNCE, WORK, files=_ALL),
    Point("conversion: settled, arq not told", "before", "arq.worker:Worker.finish_job", files=_ALL),
    Point(
        "lease: renewed, not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.renew",
        attempt=2,
        leases=1,
        trouble="frozen child",
    ),
    Point("lease: renewed", "after", _COMMIT, f"{_LEDGER}.renew", attempt=2, leases=1, trouble="frozen child"),
    Point(
        "failure: not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.fail",
        ends="failed",
        attempt=2,
        leases=1,
        is_whole=False,
    ),
    Point("failure: committed", "after", _COMMIT, f"{_LEDGER}.fail", ends="failed", is_whole=False),
    Point(
        "failure: counted, not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.count_failure",
        attempt=2,
        leases=1,
        trouble="crashed child",
    ),
    Point("failure: counted", "after", _COMMIT, f"{_LEDGER}.count_failure", attempt=2, trouble="crashed child"),
    Point(
        "loss: counted, not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.count_loss",
        attempt=2,
        leases=1,
        trouble="killed child",
    ),
    Point("loss: counted", "after", _COMMIT, f"{_LEDGER}.count_loss", attempt=2, trouble="killed child"),
    Point(
        "loss: its folder removed, not enqueued",
        "before",
        _ENQUEUE,
        WORK,
        attempt=2,
        trouble="killed child",
    ),
    Point(
        "hand back: not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.hand_back",
        attempt=2,
        leases=1,
        trouble="told to stop",
    ),
    Point("hand back: committed", "after", _COMMIT, f"{_LEDGER}.hand_back", attempt=2, trouble="told to stop"),
    Point(
        "preemption: not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.hand_back",
        attempt=2,
        leases=1,
        trouble="preempted",
    ),
    Point("preemption: committed", "after", _COMMIT, f"{_LEDGER}.hand_back", attempt=2, trouble="preempted"),
)

#: A worker takes work from the ledger, for Redis is away. What it claims has no name before: it takes the first one.
WITHOUT_REDIS = (
    Point("without Redis: claimed", "after", _COMMIT, f"{_LEDGER}.claim_next", about="", attempt=2, leases=1),
    Point("without Redis: claimed, not committed", "before", _COMMIT, f"{_LEDGER}.claim_next", about=""),
)

#: A worker's sweep takes what is owed, one kind after the other.
SWEEPING_DEBTS = tuple(
    Point(
        f"sweep: took {what}, not paid",
        "before",
        "shared.settling:Settling.pay",
        call=call,
        files=_ALL,
        prior=PUBLISHED,
        consumes=False,
    )
    for call, what in enumerate(("the tokens that a row owes", "the notice that a row owes"), 1)
)

#: A worker's sweep takes what is due, in the order in which a pass does it.
SWEEPING_LOST = Point(
    "sweep: took a lost attempt, not enqueued",
    "before",
    _ENQUEUE,
    attempt=2,
    leases=1,
    prior=CLAIMED,
    consumes=False,
)
SWEEPING_RENDITIONS = Point(
    "sweep: took renditions, not enqueued",
    "before",
    _ENQUEUE,
    files=_ALL,
    attempt=2,
    consumes=False,
)
SWEEPING_QUEUED = Point("sweep: took a queued row, not enqueued", "before", _ENQUEUE, consumes=False)
SWEEPING_LEFTOVERS = Point(
    "sweep: took leftovers that a row owes, not removed",
    "before",
    "shared.settling:Settling.pay",
    files=_ALL,
    attempt=2,
    prior=LEFTOVERS_REMOVED,
    consumes=False,
)
SWEEPING = (SWEEPING_LOST, SWEEPING_RENDITIONS, SWEEPING_QUEUED, SWEEPING_LEFTOVERS)

#: A web process deletes a ready image.
DELETING = _here(
    Point("delete: not committed", "before", _COMMIT, f"{_LEDGER}.delete", files=_ALL),
    Point("delete: committed", "after", _COMMIT, f"{_LEDGER}.delete", files=_ALL, ends="deleted"),
    Point(
        "delete: the tokens are changed, the debt not paid",
        "after",
        _TOKENS_CHANGED,
        _DELETE,
        files=_ALL,
        ends="deleted",
    ),
    Point(
        "delete: the tokens are paid for, no notice sent",
        "before",
        _ANNOUNCE,
        _DELETE,
        files=_ALL,
        ends="deleted",
    ),
    Point(
        "delete: the notice is paid for, no file removed",
        "before",
        _REMOVE_LEFTOVERS,
        _DELETE,
        files=_ALL,
        ends="deleted",
    ),
    Point(
        "delete: one file is removed",
        "after",
        "os:unlink",
        f"{_STORAGE}.delete_folder",
        files=_ALL,
        ends="deleted",
        only="disk",
    ),
    Point("delete: half of the files are removed", "after", f"{_STORAGE}.delete_folder", _DELETE, ends="deleted"),
    Point(
        "delete: all files are removed, the row not told",
        "before",
        f"{_LEDGER}.remove",
        _DELETE,
        files="",
        ends="deleted",
    ),
)

#: A web process queues a failed image again.
RETRYING = (
    Point("retry: not committed", "before", _COMMIT, f"{_LEDGER}.retry", ends="failed"),
    Point("retry: committed, not enqueued", "before", _ENQUEUE, _RETRY, attempt=2),
)

#: A web process is asked for a thumbnail that is gone.
ASKING_FOR_RENDITIONS = (
    Point(
        "renditions: asked for, not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.request_renditions",
        files=_ALL,
        attempt=2,
    ),
    Point("renditions: asked for, not enqueued", "before", _ENQUEUE, _MISSING, files=_ALL, attempt=2),
)

#: One of those that there are, and one that there is not.
_ONE, _ADDED = "320x180.jpeg", "80x45.jpeg"

#: A worker makes the renditions of a ready image again.
MAKING_RENDITIONS = _here(
    Point("renditions: claimed", "after", _COMMIT, f"{_LEDGER}.claim", files=_ALL, attempt=3, leases=1),
    Point("renditions: kept, not published", "before", f"{_LEDGER}.publish", WORK, files=_ALL, attempt=3, leases=1),
    Point(
        "renditions: published, not committed",
        "before",
        _COMMIT,
        f"{_LEDGER}.publish",
        files=_ALL,
        attempt=3,
        leases=1,
    ),
    Point("renditions: published", "after", _COMMIT, f"{_LEDGER}.publish", files=_ALL, attempt=2),
    Point(
        "renditions: the tokens are paid for, leftovers not removed",
        "before",
        _REMOVE_LEFTOVERS,
        WORK,
        files=_ALL,
        attempt=2,
    ),
    Point(
        "renditions: one superseded file is removed",
        "after",
        "os:unlink",
        f"{_STORAGE}.delete_folder",
        files=_ALL,
        attempt=2,
        only="disk",
    ),
    LEFTOVERS_REMOVED,
)

#: A worker makes but some renditions of a ready image, and merges them into those that it has.
MERGING = (
    Point(
        "merge: one file is kept, not published",
        "before",
        f"{_LEDGER}.publish",
        WORK,
        files=_ALL,
        attempt=3,
        leases=1,
        wanted=_ONE,
    ),
    Point("merge: one file is published", "after", _COMMIT, f"{_LEDGER}.publish", files=_ALL, attempt=2, wanted=_ONE),
    Point(
        "merge: the superseded file is removed, the debt not paid",
        "before",
        f"{_LEDGER}.paid",
        WORK,
        call=2,
        files=_ALL,
        attempt=2,
        wanted=_ONE,
    ),
    Point(
        "merge: one more is kept, not published",
        "before",
        f"{_LEDGER}.publish",
        WORK,
        files=_ALL,
        attempt=3,
        leases=1,
        wanted=_ADDED,
    ),
    Point("merge: one more is published", "after", _COMMIT, f"{_LEDGER}.publish", files=_ALL, attempt=2, wanted=_ADDED),
)

#: A web process reads the list, and pays first what others owe.
READING = (
    Point(
        "reading: the tokens are changed, the debts not paid",
        "after",
        _TOKENS_CHANGED,
        "shared.settling:Settling.settle_all_tokens",
        about="",
        files=_ALL,
        prior=PUBLISHED,
    ),
    Point(
        "reading: the tokens are paid for, no notice sent",
        "before",
        _ANNOUNCE,
        "shared.settling:Settling.settle_all_tokens",
        about="",
        files=_ALL,
        prior=PUBLISHED,
    ),
)

ALL = (
    *UPLOADING,
    *CONVERTING,
    *WITHOUT_REDIS,
    *SWEEPING_DEBTS,
    *SWEEPING,
    *DELETING,
    *RETRYING,
    *ASKING_FOR_RENDITIONS,
    *MAKING_RENDITIONS,
    *MERGING,
    *READING,
)

#: A process starts with a new ledger and an empty storage: the release, a worker.
MIGRATING = (
    Point(
        "release: the tables are made, the version not noted",
        "before",
        "alembic.runtime.migration:HeadMaintainer.update_to_step",
    ),
    Point("release: the version is noted, not committed", "before", _COMMIT),
)
STARTING = (
    Point("start: the marker's draft is made", "after", f"{_STORAGE}.draft", "shared.identity:check_storage"),
    Point("start: the marker is kept, the ledger has not adopted it", "before", f"{_LEDGER}.adopt_marker"),
    Point("start: the marker is adopted", "after", _COMMIT, f"{_LEDGER}.adopt_marker"),
)
