"""The environment is read once; a bad value fails at start and names its variable."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from shared.errors import SettingsError
from shared.settings import Settings

#: Every variable, a value for it, and what it makes of which setting.
VARIABLES: list[tuple[str, str, str, Any]] = [
    ("ASGI_LOOK_STORAGE_PATH", "/tmp/pictures", "storage_path", Path("/tmp/pictures")),  # noqa: S108 - never opened
    ("ASGI_LOOK_STORAGE", "s3://bucket/some/prefix/", "storage_url", "s3://bucket/some/prefix"),
    ("ASGI_LOOK_ALLOW_LOCAL", "1", "allow_local", True),
    ("ASGI_LOOK_LOCAL_CACHE_BYTES", "0", "local_cache_bytes", 0),
    ("ASGI_LOOK_REDIRECT_BYTES", "1000", "redirect_bytes", 1000),
    ("ASGI_LOOK_MEMORY_CACHE_BYTES", "0", "memory_cache_bytes", 0),
    ("ASGI_LOOK_ACCEL", "X-Accel-Redirect:/protected/", "accel", ("x-accel-redirect", "/protected/")),
    ("ASGI_LOOK_ACCEL", "x-sendfile", "accel", ("x-sendfile", "")),
    ("DATABASE_URL", "sqlite:////srv/ledger.sqlite3", "database_url", "sqlite:////srv/ledger.sqlite3"),
    (
        "DATABASE_URL",
        "postgres://me:p%40ss@db.example/asgilook",
        "database_url",
        "postgresql://me:p%40ss@db.example/asgilook",
    ),
    ("ASGI_LOOK_DATABASE_CONNECTIONS", "9", "database_connections", 9),
    ("REDIS_URL", "rediss://:p%40ss@redis.example:6380/2", "redis_url", "rediss://:p%40ss@redis.example:6380/2"),
    ("CACHE_REDIS_URL", "redis://cache.example/0", "cache_redis_url", "redis://cache.example/0"),
    ("ASGI_LOOK_REDIS_CERT_REQS", "None", "redis_cert_reqs", "none"),
    ("ASGI_LOOK_REDIS_CA_CERTS", __file__, "redis_ca_certs", Path(__file__)),
    ("ASGI_LOOK_REDIS_MAX_CONNECTIONS", "12", "redis_max_connections", 12),
    ("ASGI_LOOK_WRITE_TOKEN", "ab.c_~+/-1==", "write_token", "ab.c_~+/-1=="),
    ("ASGI_LOOK_MAX_CONNECTIONS", "50", "max_connections", 50),
    ("ASGI_LOOK_HEADER_SECONDS", "2.5", "header_seconds", 2.5),
    ("ASGI_LOOK_DOWNLOAD_STALL_SECONDS", "2.5", "download_stall_seconds", 2.5),
    ("ASGI_LOOK_DOWNLOAD_LEAST_RATE", "0", "download_least_rate", 0),
    ("ASGI_LOOK_MAX_UNSENT_BYTES", "1000", "max_unsent_bytes", 1000),
    ("ASGI_LOOK_MAX_UPLOAD_BYTES", "1000", "max_upload_bytes", 1000),
    ("ASGI_LOOK_UPLOAD_STALL_SECONDS", "2.5", "upload_stall_seconds", 2.5),
    ("ASGI_LOOK_UPLOAD_LEAST_RATE", "0", "upload_least_rate", 0),
    ("ASGI_LOOK_MAX_WAITING", "7", "max_waiting", 7),
    ("ASGI_LOOK_FREE_DISK_FLOOR", "0", "free_disk_floor", 0),
    ("ASGI_LOOK_KEEP_ORIGINALS", "0", "keep_originals", False),
    ("ASGI_LOOK_MIN_THUMB_SIZE", "32", "min_thumb_size", 32),
    ("ASGI_LOOK_BACKGROUND", "#0080fF", "background", (0, 128, 255)),
    ("ASGI_LOOK_MAX_PIXELS", "1000000", "max_pixels", 1_000_000),
    ("ASGI_LOOK_MAX_SIDE", "8000", "max_side", 8_000),
    ("ASGI_LOOK_PICTURE_MAX_AGE", "60", "picture_max_age", 60),
    ("ASGI_LOOK_RENDER_SLOTS", "3", "render_slots", 3),
    ("ASGI_LOOK_RENDER_CPU_SECONDS", "5", "render_cpu_seconds", 5),
    ("ASGI_LOOK_RENDER_WALL_SECONDS", "12.5", "render_wall_seconds", 12.5),
    ("ASGI_LOOK_RENDER_MEMORY_BYTES", "536870912", "render_memory_bytes", 536_870_912),
    ("ASGI_LOOK_GRACE_SECONDS", "7", "grace_seconds", 7),
    ("ASGI_LOOK_KEEP_ALIVE_SECONDS", "620", "keep_alive_seconds", 620.0),
    (
        "ASGI_LOOK_CORS_ORIGINS",
        "https://www.example.com, http://localhost:3000",
        "cors_origins",
        ("https://www.example.com", "http://localhost:3000"),
    ),
    ("ASGI_LOOK_LOG_LEVEL", "debug", "log_level", "DEBUG"),
    ("HOST", "127.0.0.1", "host", "127.0.0.1"),
    ("ASGI_LOOK_METRICS", "1", "metrics", True),
    ("ASGI_LOOK_METRICS_TOKEN", "ab.c_~+/-1==", "metrics_token", "ab.c_~+/-1=="),
    ("ASGI_LOOK_METRICS_PORT", "9090", "metrics_port", 9090),
]


@pytest.mark.parametrize(("name", "text", "field", "value"), VARIABLES, ids=[row[0] for row in VARIABLES])
def test_a_variable_sets_its_setting_and_no_other(name: str, text: str, field: str, value: Any) -> None:
    settings = dataclasses.asdict(Settings.from_env({name: f" {text} "}))

    changed = {key for key, default in dataclasses.asdict(Settings()).items() if settings[key] != default}
    assert settings[field] == value
    # Where the ledger and the cache are follows from the storage and Redis, unless it is set.
    assert changed == {field} | {"storage_path": {"database_url"}, "redis_url": {"cache_redis_url"}}.get(field, set())


def test_every_setting_has_a_variable() -> None:
    # OpenTelemetry's own variables say whether there is tracing: tests/shared/telemetry/test_tracing.py.
    assert {row[2] for row in VARIABLES} | {"tracing"} == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", [row[0] for row in VARIABLES])
def test_an_empty_variable_is_one_that_is_not_set(name: str) -> None:
    assert Settings.from_env({name: "  "}) == Settings.from_env({}) == Settings()


WHOLE_NUMBERS_FROM = {
    "ASGI_LOOK_DATABASE_CONNECTIONS": 1,
    "ASGI_LOOK_MAX_CONNECTIONS": 1,
    "ASGI_LOOK_REDIS_MAX_CONNECTIONS": 2,
    "ASGI_LOOK_DOWNLOAD_LEAST_RATE": 0,
    "ASGI_LOOK_MAX_UNSENT_BYTES": 1,
    "ASGI_LOOK_MAX_UPLOAD_BYTES": 1,
    "ASGI_LOOK_UPLOAD_LEAST_RATE": 0,
    "ASGI_LOOK_MAX_WAITING": 1,
    "ASGI_LOOK_FREE_DISK_FLOOR": 0,
    "ASGI_LOOK_LOCAL_CACHE_BYTES": 0,
    "ASGI_LOOK_REDIRECT_BYTES": 0,
    "ASGI_LOOK_MEMORY_CACHE_BYTES": 0,
    "ASGI_LOOK_MIN_THUMB_SIZE": 1,
    "ASGI_LOOK_MAX_PIXELS": 1,
    "ASGI_LOOK_PICTURE_MAX_AGE": 0,
    "ASGI_LOOK_RENDER_SLOTS": 1,
    "ASGI_LOOK_RENDER_CPU_SECONDS": 1,
    "ASGI_LOOK_RENDER_MEMORY_BYTES": 256 * 1024 * 1024,
    "ASGI_LOOK_GRACE_SECONDS": 0,
}
SECONDS = (
    "ASGI_LOOK_HEADER_SECONDS",
    "ASGI_LOOK_KEEP_ALIVE_SECONDS",
    "ASGI_LOOK_DOWNLOAD_STALL_SECONDS",
    "ASGI_LOOK_UPLOAD_STALL_SECONDS",
    "ASGI_LOOK_RENDER_WALL_SECONDS",
)
BAD_VALUES = [
    *((name, text) for name in WHOLE_NUMBERS_FROM for text in ("many", "1.5", "1_000", "٣", "0x10", "-1")),
    *((name, str(least - 1)) for name, least in WHOLE_NUMBERS_FROM.items()),
    *((name, text) for name in SECONDS for text in ("soon", "0", "0.0", "-1", "nan", "inf", "1e3", "٣")),
    *(("ASGI_LOOK_MAX_SIDE", text) for text in ("0", "65501", "many", "1.5", "٣", "-1", "+8000")),
    ("ASGI_LOOK_STORAGE_PATH", __file__),
    ("ASGI_LOOK_STORAGE", "/srv/pictures"),
    ("ASGI_LOOK_STORAGE", "s3://"),
    ("ASGI_LOOK_STORAGE", "http://bucket.example"),
    ("ASGI_LOOK_STORAGE", "s3://key:secret@bucket/prefix"),
    ("ASGI_LOOK_STORAGE", "s3://bucket/prefix?secret_access_key=secret"),
    ("ASGI_LOOK_STORAGE", "s3://bucket/prefix/../other"),
    ("ASGI_LOOK_STORAGE_PATH", "~nobody-of-this-name/pictures"),
    ("DATABASE_URL", "ledger.sqlite3"),
    ("DATABASE_URL", "sqlite://"),
    ("DATABASE_URL", "sqlite:///"),
    ("DATABASE_URL", "sqlite:///:memory:"),
    *(
        ("DATABASE_URL", text)
        for text in (
            "postgresql+psycopg2://user:secret@db.example/asgilook",
            "mysql://user:secret@db.example/asgilook",
            "postgres://user:secret#1@db.example/asgilook",
            "postgres://user:secr@et@db.example/asgilook",
            "postgres://user:secret/1@db.example/asgilook",
            "postgres://user:?secret=1@db.example/asgilook",
            "postgres://user:?secret@db.example/asgilook",
            "postgres://user:secret@[db.example/asgilook",
            "postgres://user:secret@db.example:port/asgilook",
            "postgres://user:secret@db.example/asgilook?port=port",
            "postgres://user:secret@one.example,two.example/asgilook?port=1,2,3",
            "postgres://user:secret@db.example/asgilook?sslmode=sure",
            "postgres://user:secret@db.example/asgilook?sslmode=require&pgbouncer=true",
            "postgres://user:secret@db.example/asgilook?sslmode=require&sslrootcert=system",
            "postgres://user:secret@db.example/asgilook?sslmode=verify-ca&sslrootcert=/no/such/file.pem",
            "postgres://user:secret@db.example/asgilook?channel_binding=require",
            "postgres://user:secret@db.example/asgilook?connect_timeout=soon",
        )
    ),
    *(
        (name, text)
        for name in ("REDIS_URL", "CACHE_REDIS_URL")
        for text in (
            "localhost:6379",
            "http://localhost",
            "redis://:secret@host:port/0",
            "redis://:secret/with-a-slash@host:6379/0",
            "redis://host/0?socket_timeout=soon",
            "redis://[::1",
        )
    ),
    ("ASGI_LOOK_REDIS_CERT_REQS", "optional"),
    ("ASGI_LOOK_REDIS_CA_CERTS", "/nowhere/issuer.pem"),
    ("ASGI_LOOK_WRITE_TOKEN", "secret with spaces"),
    ("ASGI_LOOK_WRITE_TOKEN", "secrét"),
    ("ASGI_LOOK_KEEP_ORIGINALS", "perhaps"),
    ("ASGI_LOOK_METRICS", "perhaps"),
    ("ASGI_LOOK_METRICS_TOKEN", "secret with spaces"),
    *(("ASGI_LOOK_METRICS_PORT", text) for text in ("0", "65536", "many", "-1")),
    ("ASGI_LOOK_ALLOW_LOCAL", "perhaps"),
    *(
        ("ASGI_LOOK_CORS_ORIGINS", text)
        for text in (
            "www.example.com",
            "https://www.example.com/",
            "https://www.example.com/path",
            "https://WWW.example.com",
            "https://www.example.com:443",
            "http://www.example.com:80",
            "https://*.example.com",
            "https://me@www.example.com",
            "* https://www.example.com",
            "https://www.example.com null",
        )
    ),
    *(
        ("ASGI_LOOK_ACCEL", text)
        for text in (
            "yes",
            "x-accel-redirect",
            "x-accel-redirect:protected/",
            "x-accel-redirect:/protected",
            "x-sendfile:/",
        )
    ),
    ("ASGI_LOOK_BACKGROUND", "white"),
    ("ASGI_LOOK_BACKGROUND", "#fff"),
    ("ASGI_LOOK_LOG_LEVEL", "LOUD"),
]


def test_files_of_an_object_store_are_handed_over_to_nobody() -> None:
    with pytest.raises(SettingsError, match=r"^ASGI_LOOK_ACCEL: .*ASGI_LOOK_STORAGE"):
        Settings.from_env({"ASGI_LOOK_ACCEL": "x-sendfile", "ASGI_LOOK_STORAGE": "s3://bucket"})


@pytest.mark.parametrize(("name", "text"), BAD_VALUES)
def test_a_bad_value_is_refused_with_its_variables_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({name: text})

    message = str(refused.value)
    assert message.startswith(f"{name}: ")
    assert len(message) > len(name) + 10
    assert "secr" not in message


def test_a_plus_in_postgresqls_address_is_no_space() -> None:
    settings = Settings.from_env({"DATABASE_URL": "postgres://db.example/asgilook?user=me+you&password=a+b%20c"})

    assert settings.database_url == "postgresql://db.example/asgilook?user=me%2Byou&password=a%2Bb%20c"


@pytest.mark.parametrize(
    ("text", "flag"),
    [("1", True), ("true", True), ("YES", True), ("on", True), ("0", False), ("False", False), ("no", False)],
)
def test_a_flag_may_be_said_in_words(text: str, flag: bool) -> None:
    assert Settings.from_env({"ASGI_LOOK_KEEP_ORIGINALS": text}).keep_originals is flag


def test_the_ledger_lies_in_the_storages_folder_unless_it_is_set(tmp_path: Path) -> None:
    settings = Settings.from_env({"ASGI_LOOK_STORAGE_PATH": str(tmp_path)})

    assert settings.database_url == f"sqlite:///{tmp_path}/ledger.sqlite3"


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
@pytest.mark.parametrize(
    "rest",
    [
        "db.example/asgilook",
        "me:p%40ss@db.example:6432/asgilook?sslmode=verify-full&sslrootcert=/etc/passwd&connect_timeout=3",
        "me:p:ss@[::1]:5432/asgilook?sslmode=require&channel_binding=prefer",
        "me@one.example:5432,two.example:5433/asgilook?target_session_attrs=read-write",
        "/asgilook?host=/run/postgresql",
        "",
    ],
)
def test_postgresql_is_named_as_its_own_programs_name_it(scheme: str, rest: str) -> None:
    settings = Settings.from_env({"DATABASE_URL": f"{scheme}://{rest}"})

    assert settings.database_url == f"postgresql://{rest}"
    assert settings.is_on_postgresql


@pytest.mark.parametrize(
    ("variable", "value", "package"),
    [
        ("DATABASE_URL", "postgres://db.example/asgilook", "asyncpg"),
        ("ASGI_LOOK_STORAGE", "s3://bucket/prefix", "obstore"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(
    variable: str, value: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both come with requirements.txt, neither with the shorter list that ./run installs."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))

    with pytest.raises(SettingsError, match=f"^{variable}: needs the package {package}, .* requirements.txt$"):
        Settings.from_env({variable: value})


ON_HEROKU = {"DYNO": "web.1"}
OBJECTS = {"ASGI_LOOK_STORAGE": "s3://bucket/prefix"}
POSTGRESQL = {"DATABASE_URL": "postgres://me:secret@db.example/asgilook"}


@pytest.mark.parametrize(
    ("env", "missing", "present"),
    [
        ({}, "ASGI_LOOK_STORAGE and DATABASE_URL: DYNO is set", None),
        (POSTGRESQL, "ASGI_LOOK_STORAGE: DYNO is set", "DATABASE_URL"),
        (OBJECTS, "DATABASE_URL: DYNO is set", "ASGI_LOOK_STORAGE "),
        (OBJECTS | {"DATABASE_URL": "sqlite:////srv/ledger.sqlite3"}, "DATABASE_URL: ", "ASGI_LOOK_STORAGE "),
        (POSTGRESQL | {"ASGI_LOOK_STORAGE_PATH": "/srv"}, "ASGI_LOOK_STORAGE: ", "DATABASE_URL"),
        ({"ASGI_LOOK_ALLOW_LOCAL": "0"}, "ASGI_LOOK_STORAGE and DATABASE_URL: ", None),
    ],
)
def test_on_heroku_what_is_on_a_disk_is_refused(env: dict[str, str], missing: str, present: str | None) -> None:
    """A path that is set is no wish to lose what is in it: settings are copied from one place to another."""
    with pytest.raises(SettingsError) as refused:
        Settings.from_env(ON_HEROKU | env)

    message = str(refused.value)
    assert message.startswith(missing)
    assert "ASGI_LOOK_ALLOW_LOCAL=1" in message
    assert present is None or present not in message
    assert "secret" not in message


@pytest.mark.parametrize("env", [OBJECTS | POSTGRESQL, {"ASGI_LOOK_ALLOW_LOCAL": "1"}, {"DYNO": " "}])
def test_on_heroku_what_lasts_is_taken_and_so_is_what_is_asked_for_on_purpose(env: dict[str, str]) -> None:
    Settings.from_env(ON_HEROKU | env)


@pytest.mark.parametrize(
    ("env", "storage", "ledger"),
    [
        ({"ASGI_LOOK_STORAGE_PATH": "/srv"}, "ASGI_LOOK_STORAGE_PATH=/srv", "ASGI_LOOK_STORAGE_PATH=/srv"),
        ({}, f"ASGI_LOOK_STORAGE_PATH={Path('data').absolute()}", f"ASGI_LOOK_STORAGE_PATH={Path('data').absolute()}"),
        (
            OBJECTS | {"ASGI_LOOK_STORAGE_PATH": "/srv"},
            "ASGI_LOOK_STORAGE=s3://bucket/prefix",
            "DATABASE_URL=sqlite:////srv/ledger.sqlite3",
        ),
        (
            OBJECTS | POSTGRESQL,
            "ASGI_LOOK_STORAGE=s3://bucket/prefix",
            "DATABASE_URL=postgres://db.example/asgilook",
        ),
        (
            {
                "ASGI_LOOK_STORAGE_PATH": "/srv",
                "DATABASE_URL": "postgres:///?user=me&password=secret&host=db.example&dbname=one&options=-csearch_path%3Dx",
            },
            "ASGI_LOOK_STORAGE_PATH=/srv",
            "DATABASE_URL=postgres:///?host=db.example&dbname=one&options=-csearch_path%3Dx",
        ),
    ],
)
def test_places_are_named_by_the_variables_in_use_and_without_passwords(
    env: dict[str, str], storage: str, ledger: str
) -> None:
    settings = Settings.from_env(env)

    assert settings.storage_place == storage
    assert settings.ledger_place == ledger
    assert ledger.startswith(f"{settings.ledger_variable}=")


def test_every_origin_may_be_allowed() -> None:
    assert Settings.from_env({"ASGI_LOOK_CORS_ORIGINS": "*"}).cors_origins == ("*",)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().max_pixels = 1  # type: ignore[misc] # that is what is tried
