"""What only PostgreSQL brings: sessions that are cut off, servers that freeze or restart, TLS, PgBouncer in between."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event

from launch.processes import HERE, free_port
from shared.errors import LedgerUnavailable, NothingCommitted
from shared.images import Image, Lane, Status
from shared.ledger import Ledger
from shared.migrations.__main__ import migrate
from shared.settings import Settings
from tests.ledgers import ORIGINAL, SIZE, claimed, failed, latest, made_by, new_id, published, queued, ready, settled
from tests.postgresql import Postgresql, execute, find_program, folder_of_nobody, started, unprivileged
from tests.waiting import until


@pytest.fixture
def database() -> str:
    return "postgresql"


Connected = Callable[..., Ledger]


@pytest.fixture
async def connected(settings: Settings) -> AsyncIterator[Connected]:
    """Connect to a ledger, the test's unless it is told another address."""
    async with AsyncExitStack() as stack:

        def connect(url: str = settings.database_url, **changes: Any) -> Ledger:
            ledger = Ledger.connect(replace(settings, database_url=url, **changes))
            stack.push_async_callback(ledger.close)
            return ledger

        yield connect


def sessions(settings: Settings, condition: str = "true") -> list[dict[str, Any]]:
    """Return the server's sessions with the test's database, but for the one that asks."""
    return execute(
        settings.database_url,
        f"SELECT * FROM pg_stat_activity WHERE {condition} AND datname = current_database() "  # noqa: S608 - our own words
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'",
    )


def test_who_has_its_ledger_in_a_file_does_not_load_the_driver() -> None:
    modules = "sys, api.app, worker.__main__, worker.doctor, shared.migrations.__main__"
    program = f"import {modules}; print('asyncpg' in sys.modules)"

    run = subprocess.run([sys.executable, "-c", program], cwd=HERE, capture_output=True, text=True, check=True)

    assert run.stdout == "False\n"


# Sessions and transactions


async def test_a_process_opens_no_more_connections_than_it_may(connected: Connected, settings: Settings) -> None:
    ledger = connected(database_connections=2)
    image = await queued(ledger)

    found = await asyncio.gather(*(ledger.get(image.id) for _ in range(50)))

    assert found == [image] * 50
    assert [session["application_name"] for session in sessions(settings)] == ["asgilook"] * 2


async def test_a_transaction_has_its_time_outs_and_its_session_is_left_as_it_was_found(ledger: Ledger) -> None:
    """Behind PgBouncer it is somebody else's next. Who waits for a lock outlasts who was frozen with it."""
    names = ("idle_in_transaction_session_timeout", "lock_timeout")
    async with ledger._database._engine.connect() as connection:
        async with connection.begin():
            inside = [(await connection.exec_driver_sql(f"SHOW {name}")).scalar_one() for name in names]
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        outside = [await raw.fetchval(f"SHOW {name}") for name in names]
        prepared = await raw.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''")

    assert inside == ["4s", "6s"]
    assert (outside, prepared) == (["0", "0"], 0)


@pytest.mark.parametrize(("default", "ours"), [("off", "on"), ("on", "on"), ("remote_apply", "remote_apply")])
async def test_a_commit_is_on_disk_whatever_the_database_is_set_to(
    connected: Connected, settings: Settings, default: str, ours: str
) -> None:
    """An upload is acknowledged after it: what a crash of the server could take back is no promise."""
    name = settings.database_url.rpartition("/")[2]
    execute(settings.database_url, f"ALTER DATABASE {name} SET synchronous_commit = {default}")

    async with connected()._database._engine.begin() as connection:
        inside = (await connection.exec_driver_sql("SHOW synchronous_commit")).scalar_one()

    assert inside == ours


async def test_of_two_who_wait_for_each_other_one_is_told_so_and_nothing_of_it_is_there(
    ledger: Ledger, settings: Settings
) -> None:
    first, second = await published(ledger), await published(ledger)
    other = await asyncpg.connect(settings.database_url, server_settings={"deadlock_timeout": "1min"})
    async with other.transaction():
        await other.execute("SELECT * FROM debts WHERE image_id = $1 FOR UPDATE", second.id)
        changing = asyncio.create_task(ledger.paid([*second.debts, *first.debts]))
        await until(lambda: sessions(settings, "wait_event_type = 'Lock'"))

        await other.execute("SELECT * FROM debts WHERE image_id = $1 FOR UPDATE", first.id)

        with pytest.raises(NothingCommitted, match="deadlock"):
            await changing
    await other.close()
    assert await ledger.owing_tokens() == [first, second]


@pytest.mark.parametrize("rival", ["retry", "request_renditions"])
async def test_a_delete_and_work_that_is_queued_lock_their_rows_in_one_order(
    ledger: Ledger, settings: Settings, rival: str
) -> None:
    """Both write the image's row and its owner's. In different orders PostgreSQL would end one of them."""
    image = await (failed if rival == "retry" else ready)(ledger)
    other = await asyncpg.connect(settings.database_url)
    async with other.transaction():
        await other.execute("SELECT * FROM owners FOR UPDATE")
        work = ledger.retry(image.id) if rival == "retry" else ledger.request_renditions(image, Lane.DEMAND)
        queueing = asyncio.create_task(work)
        await until(lambda: sessions(settings, "wait_event_type = 'Lock'"))
        deleting = asyncio.create_task(ledger.delete(image.id))
        await until(lambda: len(sessions(settings, "wait_event_type = 'Lock'")) == 2)
    await other.close()

    assert await queueing is not None
    assert await deleting is not None
    assert (await latest(ledger, image)).status is Status.DELETING


async def test_a_publication_waits_for_no_upload_of_its_owner_and_holds_no_other_publication_up(
    ledger: Ledger, settings: Settings
) -> None:
    """A web process that is frozen in an upload holds its owner's row."""
    late, other_one = await claimed(ledger), await claimed(ledger)
    other = await asyncpg.connect(settings.database_url)
    async with other.transaction():
        await other.execute("SELECT * FROM owners FOR UPDATE")
        publishing = asyncio.create_task(ledger.publish(late, SIZE, made_by(late), seconds=10.0))
        await until(lambda: sessions(settings, "wait_event_type = 'Lock'"))

        assert (await latest(ledger, late)).status is Status.READY
        assert await ledger.publish(other_one, SIZE, made_by(other_one), seconds=0.1)
    await other.close()

    assert await publishing is not None


async def test_a_turn_that_cannot_be_moved_is_no_failure_of_the_publication(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = await claimed(ledger)
    monkeypatch.setattr("shared.ledger.postgresql.LOCK_SECONDS", 0.1)
    other = await asyncpg.connect(settings.database_url)
    async with other.transaction():
        await other.execute("SELECT * FROM owners FOR UPDATE")

        image = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=10.0)
    await other.close()

    assert image is not None
    assert await latest(ledger, attempt) == image


async def test_rows_in_another_sweeps_hands_are_passed_over_at_once(ledger: Ledger, settings: Settings) -> None:
    rows = [await claimed(ledger) for _ in range(3)]
    execute(settings.database_url, "UPDATE images SET due = due - 1000")
    other = await asyncpg.connect(settings.database_url)
    async with other.transaction():
        await other.execute("SELECT * FROM images WHERE id = $1 FOR UPDATE", rows[0].id)

        taken = await ledger.take_lost()

    await other.close()
    assert sorted(row.id for row in taken) == sorted(row.id for row in rows[1:])


async def test_whoever_loses_an_image_learns_so_whatever_isolation_the_database_is_set_to(
    connected: Connected, settings: Settings
) -> None:
    """Where all are serialized a loser gets an error, and its worker takes the ledger for one in trouble."""
    name = settings.database_url.rpartition("/")[2]
    execute(settings.database_url, f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
    ledger = connected()
    image = await queued(ledger)
    other = await asyncpg.connect(settings.database_url)
    async with other.transaction():
        await other.execute("UPDATE images SET status = 'processing', worker = 'host:2' WHERE id = $1", image.id)
        claiming = asyncio.create_task(ledger.claim(image.id, "host:1"))
        await until(lambda: sessions(settings, "wait_event_type = 'Lock'"))
    await other.close()

    assert await claiming is None


async def test_a_role_that_may_not_read_its_ledger_is_not_told_to_migrate(
    postgresql: Postgresql, connected: Connected, settings: Settings
) -> None:
    """A release run as the owner is not enough where the service has a role of its own."""
    postgresql.execute("CREATE ROLE stranger LOGIN")
    ledger = connected(settings.database_url.replace(f"{postgresql.user}@", "stranger@"))

    with pytest.raises(NothingCommitted, match="permission denied"):
        await ledger.identity()


# A commit of which nobody knows


def make_commits_slow(settings: Settings, table: str, seconds: float) -> None:
    """Have whatever writes to a table be busy in its COMMIT for so long."""
    for statement in (
        "CREATE FUNCTION busy() RETURNS trigger LANGUAGE plpgsql AS "
        f"'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END'",
        f"CREATE CONSTRAINT TRIGGER busy AFTER INSERT OR UPDATE ON {table} DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION busy()",
    ):
        execute(settings.database_url, statement)


def noted(ledger: Ledger) -> list[Any]:
    """Return the list of the ledger's connections, which fills as they are made."""
    raws: list[Any] = []

    def note(connection: Any, record: object) -> None:
        raws.append(connection.driver_connection)

    event.listen(ledger._database._engine.sync_engine, "connect", note)
    return raws


def cut(raws: list[Any]) -> None:
    """Cut connections. A server that is busy does not see it before it has something to say."""
    for raw in raws:
        raw.terminate()


async def in_commit(settings: Settings) -> None:
    await until(lambda: sessions(settings, "query LIKE 'COMMIT%' AND wait_event = 'PgSleep'"))


async def test_an_upload_whose_commit_was_cut_off_is_found_once_it_is_through(
    connected: Connected, settings: Settings
) -> None:
    """A look at the table finds nothing meanwhile: who believed it would remove the original of a queued image."""
    ledger, image_id = connected(), new_id()
    raws = noted(ledger)
    make_commits_slow(settings, "images", 1)
    adding = asyncio.create_task(ledger.add(image_id, ORIGINAL, "request-1"))
    await in_commit(settings)

    cut(raws)
    with pytest.raises(LedgerUnavailable) as unknown:
        await adding
    meanwhile = await ledger.get(image_id)
    certain = await ledger.get_certainly(image_id, ORIGINAL)

    assert not isinstance(unknown.value, NothingCommitted)
    assert meanwhile is None
    assert certain is not None
    assert (certain.status, certain.request) == (Status.QUEUED, "request-1")


async def test_an_upload_whose_commit_came_to_nothing_is_certainly_absent(
    connected: Connected, settings: Settings
) -> None:
    ledger, image_id = connected(), new_id()
    make_commits_slow(settings, "images", 30)
    adding = asyncio.create_task(ledger.add(image_id, ORIGINAL, None))
    await in_commit(settings)

    execute(
        settings.database_url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    )
    with pytest.raises(LedgerUnavailable) as unknown:
        await adding
    execute(settings.database_url, "DROP FUNCTION busy CASCADE")

    assert not isinstance(unknown.value, NothingCommitted)
    assert await ledger.get_certainly(image_id, ORIGINAL) is None
    assert await ledger.list_all(None, 10) == []


async def test_who_gives_an_attempt_up_learns_whether_its_publication_was_cut_off_or_through(
    connected: Connected, settings: Settings
) -> None:
    """The hand back waits for the row that the commit still holds: after it, the row tells for certain."""
    ledger = connected()
    raws = noted(ledger)
    attempt = await claimed(ledger)
    make_commits_slow(settings, "deployment", 1)
    publishing = asyncio.create_task(ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1))
    await in_commit(settings)

    cut(raws)
    with pytest.raises(LedgerUnavailable):
        await publishing
    handed_back = await ledger.hand_back(attempt, 2.0)

    assert handed_back is None
    assert (await latest(ledger, attempt)).has_published(attempt.attempt)


# Servers that go and come


async def test_a_restart_costs_no_request_an_error(own_postgresql: Postgresql, connected: Connected) -> None:
    """What was closed while nobody used it is known without asking."""
    url = own_postgresql.database()
    ledger = connected(url)
    raws = noted(ledger)
    images = await asyncio.gather(*(queued(ledger) for _ in range(4)))
    own_postgresql.stop()
    await until(lambda: all(raw.is_closed() for raw in raws))

    with pytest.raises(NothingCommitted):
        await queued(ledger)
    own_postgresql.start()

    assert await ledger.list_all(None, 10) == sorted(images, key=lambda image: image.id)


async def test_a_server_that_answers_nothing_is_unavailable_in_seconds_and_used_again_once_it_does(
    own_postgresql: Postgresql, connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.ledger.postgresql.COMMAND_SECONDS", 1.0)
    url = own_postgresql.database()
    ledger, newcomer = connected(url), connected(f"{url}?connect_timeout=1")
    image = await queued(ledger)
    own_postgresql.freeze()

    async with asyncio.timeout(60):
        with pytest.raises(LedgerUnavailable, match="did not let us in within 1 s"):
            await newcomer.get(image.id)
        with pytest.raises(LedgerUnavailable, match="does not answer in time"):
            await ledger.get(image.id)
    own_postgresql.thaw()

    assert await ledger.get(image.id) == image
    assert await newcomer.get(image.id) == image


async def test_connections_to_a_server_that_answers_nothing_are_closed_at_once_and_without_a_word(
    own_postgresql: Postgresql, connected: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever is told to end has so many seconds; each connection would take those of a command, one by one."""
    ledger = connected(own_postgresql.database())
    await asyncio.gather(*(ledger.now() for _ in range(8)))
    own_postgresql.freeze()

    async with asyncio.timeout(20):
        await ledger.close()

    assert caplog.records == []


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://{user}@127.0.0.1:{deaf},127.0.0.1:{port}/{name}?connect_timeout=1",
        "postgresql://{user}@/{name}?host=127.0.0.1,127.0.0.1&port={deaf},{port}&connect_timeout=1",
        "postgresql://{user}@127.0.0.1:{deaf}/{name}?host=127.0.0.1&port={port}",
        "postgresql://{user}@127.0.0.1,localhost/{name}?port={port}&target_session_attrs=read-write",
    ],
)
async def test_a_host_that_is_silent_does_not_take_the_time_of_the_next_one(
    postgresql: Postgresql, connected: Connected, settings: Settings, deaf: int, address: str
) -> None:
    """The machine of the old primary may be gone altogether. What follows the ? counts, as it does to libpq."""
    name = settings.database_url.rpartition("/")[2]
    url = address.format(user=postgresql.user, deaf=deaf, port=postgresql.port, name=name)

    ledger = connected(Settings.from_env({"DATABASE_URL": url}).database_url)

    assert await ledger.now() > 0


async def test_of_several_hosts_the_one_that_may_be_written_to_is_found(
    own_postgresql: Postgresql, postgresql: Postgresql, connected: Connected, settings: Settings
) -> None:
    name = settings.database_url.rpartition("/")[2]
    own_postgresql.execute(f"CREATE DATABASE {name}")
    own_postgresql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    hosts = f"127.0.0.1:{own_postgresql.port},127.0.0.1:{postgresql.port}"
    url = f"postgresql://{postgresql.user}@{hosts}/{name}?target_session_attrs=read-write"
    await asyncio.to_thread(migrate, replace(settings, database_url=url))

    image = await queued(connected(url))

    assert await connected().get(image.id) == image


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("postgresql://me@127.0.0.1:1,[::1]:1/x", r"127\.0\.0\.1:1,\[::1\]:1"),
        ("postgresql://me@/x?host=/no/such/folder", "/no/such/folder"),
        ("postgresql://me@%2Fno%2Fsuch%2Ffolder/x", "/no/such/folder"),
    ],
)
async def test_who_cannot_be_reached_is_named(connected: Connected, address: str, place: str) -> None:
    with pytest.raises(NothingCommitted, match=f"^PostgreSQL at {place} cannot be reached: "):
        await connected(address).now()


async def test_who_finds_that_its_server_may_only_be_read_asks_for_another_next(
    connected: Connected, settings: Settings, postgresql: Postgresql
) -> None:
    """After a failover the old server may still be there; its address has another behind it by now."""
    name = settings.database_url.rpartition("/")[2]
    execute(settings.database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    ledger = connected(database_connections=1)
    with pytest.raises(NothingCommitted, match="read-only"):
        await queued(ledger)
    execute(
        settings.database_url.replace(name, "postgres"),
        f"ALTER DATABASE {name} SET default_transaction_read_only = off",
    )

    image = await queued(ledger)

    assert await ledger.get(image.id) == image


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, another one, and a server's certificate for `localhost` that the first has signed."""
    folder = tmp_path_factory.mktemp("certificates")
    openssl = find_program("openssl", "openssl")
    (folder / "names").write_text("subjectAltName = DNS:localhost")
    new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    for arguments in (
        f"req -x509 {new} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority",
        f"req -x509 {new} -keyout other.key -out other.pem -days 2 -subj /CN=other",
        f"req {new} -keyout server.key -out server.csr -subj /CN=server",
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names",
    ):
        subprocess.run([openssl, *arguments.split()], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tls(certificates: Path) -> Iterator[Postgresql]:
    """A server that speaks TLS to whoever wants it."""
    with started() as server:
        server.give("server.pem", (certificates / "server.pem").read_bytes())
        server.give("server.key", (certificates / "server.key").read_bytes())
        server.execute("ALTER SYSTEM SET ssl_cert_file = 'server.pem'")
        server.execute("ALTER SYSTEM SET ssl_key_file = 'server.key'")
        server.execute("ALTER SYSTEM SET ssl = on")
        server.stop()
        server.start()
        yield server


#: What `sslmode` and its companions make of a server with TLS: encrypted, plain, or refused.
MODES = [
    ("127.0.0.1", "", "encrypted"),
    ("127.0.0.1", "?sslmode=disable", "plain"),
    ("127.0.0.1", "?sslmode=allow", "plain"),
    ("127.0.0.1", "?sslmode=prefer", "encrypted"),
    ("127.0.0.1", "?sslmode=require", "encrypted"),
    ("127.0.0.1", "?sslmode=verify-ca&sslrootcert={}/ca.pem", "encrypted"),
    ("127.0.0.1", "?sslmode=verify-ca&sslrootcert={}/other.pem", "refused"),
    ("127.0.0.1", "?sslmode=verify-full&sslrootcert={}/ca.pem", "refused"),
    ("localhost", "?sslmode=verify-full&sslrootcert={}/ca.pem", "encrypted"),
    ("localhost", "?sslmode=verify-full&sslrootcert={}/other.pem", "refused"),
    ("localhost", "?sslmode=verify-full&sslrootcert=system", "refused"),
]


@pytest.mark.parametrize(("host", "query", "outcome"), MODES)
async def test_sslmode_means_what_it_means_to_libpq(
    tls: Postgresql,
    certificates: Path,
    connected: Connected,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    query: str,
    outcome: str,
) -> None:
    monkeypatch.setenv("HOME", str(certificates))  # whoever runs the tests may have an authority of their own there
    url = tls.url("migrated", query.format(certificates)).replace("127.0.0.1", host)
    ledger = connected(Settings.from_env({"DATABASE_URL": url}).database_url)

    if outcome == "refused":
        with pytest.raises(LedgerUnavailable, match="certificate"):
            await ledger.identity()
        return
    await ledger.identity()
    async with ledger._database._engine.connect() as connection:
        found = await connection.exec_driver_sql("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        assert found.scalar_one() is (outcome == "encrypted")


@pytest.mark.parametrize(
    ("mode", "outcome"), [("disable", "plain"), ("prefer", "plain"), ("require", "refused"), ("verify-ca", "refused")]
)
async def test_sslmode_tells_what_a_server_without_tls_is_good_for(
    connected: Connected, settings: Settings, certificates: Path, mode: str, outcome: str
) -> None:
    ledger = connected(f"{settings.database_url}?sslmode={mode}&sslrootcert={certificates}/ca.pem")

    if outcome == "refused":
        with pytest.raises(LedgerUnavailable, match=r"cannot be reached: .*SSL"):
            await ledger.identity()
    else:
        await ledger.identity()


# PgBouncer


@pytest.fixture
def bouncer(postgresql: Postgresql) -> Iterator[int]:
    """The port of a PgBouncer that hands out two servers, each for a transaction."""
    pgbouncer = find_program("pgbouncer", "pgbouncer")
    with folder_of_nobody() as folder:
        port = free_port()
        (folder / "users").write_text(f'"{postgresql.user}" ""\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={postgresql.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = 2\n"
        )
        process = subprocess.Popen(
            unprivileged([pgbouncer, "-q", str(folder / "ini")]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield port
        finally:
            process.kill()
            process.wait()


async def test_behind_pgbouncer_in_transaction_mode_everything_works_as_without_it(
    postgresql: Postgresql, bouncer: int, settings: Settings, connected: Connected
) -> None:
    """Each transaction may get another server, which knows nothing of what was prepared or set before."""
    url = settings.database_url.replace(f":{postgresql.port}/", f":{bouncer}/")
    direct = connected()
    await until(lambda: is_open(bouncer))
    await asyncio.to_thread(migrate, replace(settings, database_url=url))
    ledgers = [connected(url) for _ in range(3)]

    async def upload_to_ready(ledger: Ledger) -> Image:
        image = await ready(ledger)
        assert await ledger.get(image.id) == image
        assert await ledger.take_lost() == []
        assert image.id not in [waiting.id for waiting in await ledger.waiting(300)]
        deleted = await ledger.delete((await ready(ledger)).id)
        assert deleted is not None
        await settled(ledger, deleted)
        return image

    finished = await asyncio.gather(*(upload_to_ready(ledger) for ledger in ledgers * 8))

    listed = await direct.list_ready(None, 100, newest_first=False)
    assert sorted(image.id for image in listed) == sorted(image.id for image in finished)
    assert [image.sequence for image in listed] == sorted(image.sequence or 0 for image in finished)
    assert len(sessions(settings)) <= 2 + 1
    # Of another process such a name would be one that is taken.
    assert [execute(url, "SELECT name FROM pg_prepared_statements") for _ in range(10)] == [[]] * 10


def is_open(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
