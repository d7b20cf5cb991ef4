"""The environment, read once into a frozen dataclass. A bad value fails at the start with its variable's name.

This module is longer than 250 lines: each of some fifty variables has a field, a line of `from_env` and often a parser.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from redis.connection import parse_url

from shared.errors import SettingsError
from shared.renditions import MAX_SIDE

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """Everything that can be configured. Sizes are in bytes or pixels, times in seconds."""

    storage_path: Path = Path("data")
    storage_url: str | None = None
    allow_local: bool = False
    local_cache_bytes: int = 1024 * 1024 * 1024
    redirect_bytes: int | None = None
    memory_cache_bytes: int = 8 * 1024 * 1024
    accel: tuple[str, str] | None = None
    # repr=False, so that no traceback shows a password.
    database_url: str = field(default="", repr=False)
    database_connections: int = 4
    redis_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    cache_redis_url: str = field(default="", repr=False)
    redis_cert_reqs: str = "required"
    redis_ca_certs: Path | None = None
    redis_max_connections: int = 6
    write_token: str | None = field(default=None, repr=False)
    max_connections: int = 1_000
    header_seconds: float = 10.0
    download_stall_seconds: float = 30.0
    download_least_rate: int = 4_096
    max_unsent_bytes: int = 256 * 1024 * 1024
    max_upload_bytes: int = 50_000_000
    upload_stall_seconds: float = 10.0
    upload_least_rate: int = 4_096
    max_waiting: int = 100_000
    free_disk_floor: int = 256 * 1024 * 1024
    keep_originals: bool = True
    min_thumb_size: int = 64
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 50_000_000
    max_side: int = MAX_SIDE
    picture_max_age: int = 31_536_000
    render_slots: int | None = None
    render_cpu_seconds: int = 20
    render_wall_seconds: float = 40.0
    render_memory_bytes: int = 1536 * 1024 * 1024
    grace_seconds: int = 20
    keep_alive_seconds: float = 75.0
    cors_origins: tuple[str, ...] = ()
    log_level: str = "INFO"
    host: str = "0.0.0.0"  # noqa: S104 - the Procfile's web listens there too
    metrics: bool = False
    metrics_token: str | None = field(default=None, repr=False)
    metrics_port: int | None = None
    tracing: bool = False

    def __post_init__(self) -> None:
        if not self.database_url:
            object.__setattr__(self, "database_url", _ledger_in(self.storage_path))
        if not self.cache_redis_url:
            object.__setattr__(self, "cache_redis_url", self.redis_url)

    @property
    def is_on_postgresql(self) -> bool:
        """Whether the ledger is on PostgreSQL."""
        return self.database_url.startswith("postgresql://")

    @property
    def storage_variable(self) -> str:
        """The variable that sets the place of originals and renditions."""
        return "ASGI_LOOK_STORAGE_PATH" if self.storage_url is None else "ASGI_LOOK_STORAGE"

    @property
    def storage_place(self) -> str:
        """`storage_variable` with its value, which is not secret."""
        return f"{self.storage_variable}={self.storage_url or self.storage_path.absolute()}"

    @property
    def ledger_variable(self) -> str:
        """The variable that sets the place of the ledger: the storage folder's if the ledger is a file in it."""
        is_in_storage = self.database_url == _ledger_in(self.storage_path) and self.storage_url is None
        return "ASGI_LOOK_STORAGE_PATH" if is_in_storage else "DATABASE_URL"

    @property
    def ledger_place(self) -> str:
        """`ledger_variable` with its value, without user and password."""
        if self.ledger_variable != "DATABASE_URL":
            return self.storage_place
        if not self.is_on_postgresql:
            return f"DATABASE_URL=sqlite:///{Path(self.database_url.partition(':///')[2]).absolute()}"
        parts = urlsplit(self.database_url)
        # `options` is kept: two ledgers may differ only in the schema that it sets.
        kept = [
            (name, value) for name, value in parse_qsl(parts.query) if name in ("host", "port", "dbname", "options")
        ]
        query = f"?{urlencode(kept)}" if kept else ""
        return f"DATABASE_URL=postgres://{parts.netloc.rpartition('@')[2]}{parts.path}{query}"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings from `env`. Raises SettingsError with the variable's name and the fault."""

        def read(name: str, parse: Callable[[str], T], default: T) -> T:
            text = env.get(name, "").strip()
            if not text:
                return default
            try:
                return parse(text)
            except ValueError as exc:
                raise SettingsError(f"{name}: {exc}") from exc

        default = cls()
        settings = cls(
            storage_path=read("ASGI_LOOK_STORAGE_PATH", _folder, default.storage_path),
            storage_url=read("ASGI_LOOK_STORAGE", _storage_url, default.storage_url),
            allow_local=read("ASGI_LOOK_ALLOW_LOCAL", _flag, default.allow_local),
            local_cache_bytes=read("ASGI_LOOK_LOCAL_CACHE_BYTES", _whole(0), default.local_cache_bytes),
            redirect_bytes=read("ASGI_LOOK_REDIRECT_BYTES", _whole(0), default.redirect_bytes),
            memory_cache_bytes=read("ASGI_LOOK_MEMORY_CACHE_BYTES", _whole(0), default.memory_cache_bytes),
            accel=read("ASGI_LOOK_ACCEL", _accel, default.accel),
            database_url=read("DATABASE_URL", _database_url, ""),
            database_connections=read("ASGI_LOOK_DATABASE_CONNECTIONS", _whole(1), default.database_connections),
            redis_url=read("REDIS_URL", _redis_url, default.redis_url),
            cache_redis_url=read("CACHE_REDIS_URL", _redis_url, ""),
            redis_cert_reqs=read("ASGI_LOOK_REDIS_CERT_REQS", _one_of("required", "none"), _usual_cert_reqs(env)),
            redis_ca_certs=read("ASGI_LOOK_REDIS_CA_CERTS", _file, default.redis_ca_certs),
            redis_max_connections=read("ASGI_LOOK_REDIS_MAX_CONNECTIONS", _whole(2), default.redis_max_connections),
            write_token=read("ASGI_LOOK_WRITE_TOKEN", _token, default.write_token),
            max_connections=read("ASGI_LOOK_MAX_CONNECTIONS", _whole(1), default.max_connections),
            header_seconds=read("ASGI_LOOK_HEADER_SECONDS", _seconds, default.header_seconds),
            download_stall_seconds=read("ASGI_LOOK_DOWNLOAD_STALL_SECONDS", _seconds, default.download_stall_seconds),
            download_least_rate=read("ASGI_LOOK_DOWNLOAD_LEAST_RATE", _whole(0), default.download_least_rate),
            max_unsent_bytes=read("ASGI_LOOK_MAX_UNSENT_BYTES", _whole(1), default.max_unsent_bytes),
            max_upload_bytes=read("ASGI_LOOK_MAX_UPLOAD_BYTES", _whole(1), default.max_upload_bytes),
            upload_stall_seconds=read("ASGI_LOOK_UPLOAD_STALL_SECONDS", _seconds, default.upload_stall_seconds),
            upload_least_rate=read("ASGI_LOOK_UPLOAD_LEAST_RATE", _whole(0), default.upload_least_rate),
            max_waiting=read("ASGI_LOOK_MAX_WAITING", _whole(1), default.max_waiting),
            free_disk_floor=read("ASGI_LOOK_FREE_DISK_FLOOR", _whole(0), default.free_disk_floor),
            keep_originals=read("ASGI_LOOK_KEEP_ORIGINALS", _flag, default.keep_originals),
            min_thumb_size=read("ASGI_LOOK_MIN_THUMB_SIZE", _whole(1), default.min_thumb_size),
            background=read("ASGI_LOOK_BACKGROUND", _colour, default.background),
            max_pixels=read("ASGI_LOOK_MAX_PIXELS", _whole(1), default.max_pixels),
            max_side=read("ASGI_LOOK_MAX_SIDE", _whole(1, MAX_SIDE), default.max_side),
            picture_max_age=read("ASGI_LOOK_PICTURE_MAX_AGE", _whole(0), default.picture_max_age),
            render_slots=read("ASGI_LOOK_RENDER_SLOTS", _whole(1), default.render_slots),
            render_cpu_seconds=read("ASGI_LOOK_RENDER_CPU_SECONDS", _whole(1), default.render_cpu_seconds),
            render_wall_seconds=read("ASGI_LOOK_RENDER_WALL_SECONDS", _seconds, default.render_wall_seconds),
            render_memory_bytes=read(
                "ASGI_LOOK_RENDER_MEMORY_BYTES", _whole(256 * 1024 * 1024), default.render_memory_bytes
            ),
            grace_seconds=read("ASGI_LOOK_GRACE_SECONDS", _whole(0), default.grace_seconds),
            keep_alive_seconds=read("ASGI_LOOK_KEEP_ALIVE_SECONDS", _seconds, default.keep_alive_seconds),
            cors_origins=read("ASGI_LOOK_CORS_ORIGINS", _origins, default.cors_origins),
            log_level=read("ASGI_LOOK_LOG_LEVEL", _one_of("DEBUG", "INFO", "WARNING", "ERROR"), default.log_level),
            host=read("HOST", str, default.host),
            metrics=read("ASGI_LOOK_METRICS", _flag, default.metrics),
            metrics_token=read("ASGI_LOOK_METRICS_TOKEN", _token, default.metrics_token),
            metrics_port=read("ASGI_LOOK_METRICS_PORT", _whole(1, 65_535), default.metrics_port),
            tracing=_names_a_receiver(env),
        )
        if settings.accel is not None and settings.storage_url is not None:
            raise SettingsError(
                "ASGI_LOOK_ACCEL: the server in front sends files of a disk, and ASGI_LOOK_STORAGE is none"
            )
        if _is_on_heroku(env) and not settings.allow_local:
            settings._refuse_local()
        return settings

    def _refuse_local(self) -> None:
        """Raise SettingsError if images or the ledger would be on a disk that is emptied at each restart."""
        missing = []
        if self.storage_url is None:
            missing.append("ASGI_LOOK_STORAGE to an object store, like s3://bucket/prefix")
        if not self.is_on_postgresql:
            missing.append("DATABASE_URL to PostgreSQL, as an add-on does it")
        if missing:
            raise SettingsError(
                f"{' and '.join(text.partition(' ')[0] for text in missing)}: DYNO is set, as on Heroku, where every "
                f"restart empties a dyno's disk, and no other dyno sees it. Set {', and '.join(missing)}; or, where "
                "all may be lost or the disk is a lasting one, ASGI_LOOK_ALLOW_LOCAL=1"
            )


def _ledger_in(folder: Path) -> str:
    return f"sqlite:///{folder / 'ledger.sqlite3'}"


def _whole(least: int, most: float = math.inf) -> Callable[[str], int]:
    bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,20}", text, re.ASCII) or not least <= int(text) <= most:
            raise ValueError(f"not a whole number {bounds}: {text}")
        return int(text)

    return parse


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) or not float(text):
        raise ValueError(f"not a number of seconds above 0: {text}")
    return float(text)


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"not 1 or 0: {text}")


def _folder(text: str) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError as exc:
        raise ValueError(f"no such home: {text}") from exc
    if path.exists() and not path.is_dir():
        raise ValueError(f"not a directory: {text}")
    return path


def _accel(text: str) -> tuple[str, str]:
    name, _, prefix = text.partition(":")
    name = name.strip().lower()
    if name == "x-sendfile" and not prefix:
        return name, ""
    if name == "x-accel-redirect" and re.fullmatch(r"/[A-Za-z0-9._~/-]*/", prefix.strip()):
        return name, prefix.strip()
    raise ValueError(f"neither x-sendfile nor like x-accel-redirect:/protected/ with a location of nginx's: {text}")


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise ValueError(f"no such file: {text}")
    return path


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"not one of {', '.join(choices)}: {text}")

    return parse


def _usual_cert_reqs(env: Mapping[str, str]) -> str:
    # Heroku's Redis has a self-signed certificate, which no CA certificate can verify.
    is_unknowable = _is_on_heroku(env) and not env.get("ASGI_LOOK_REDIS_CA_CERTS", "").strip()
    return "none" if is_unknowable else Settings.redis_cert_reqs


def _is_on_heroku(env: Mapping[str, str]) -> bool:
    return bool(env.get("DYNO", "").strip())


def _storage_url(text: str) -> str:
    # The error does not repeat the value: a password that was put into it by mistake must not get into a log.
    # A segment of dots only would mean the parent folder.
    if not re.fullmatch(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/(?!\.+(/|$))[A-Za-z0-9._-]+)*/?", text):
        raise ValueError(
            "not like s3://bucket/prefix (or gs://, az://): credentials have variables of their own, "
            "and a folder of a disk is set by ASGI_LOOK_STORAGE_PATH"
        )
    _need("obstore")
    return text.rstrip("/")


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"needs the package {package}, which is not installed: pip install -r requirements.txt")


def _colour(text: str) -> tuple[int, int, int]:
    if not re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
        raise ValueError(f"not a colour like ffffff: {text}")
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def _token(text: str) -> str:
    # RFC 6750, section 2.1: the characters of a bearer token.
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]+=*", text):
        raise ValueError("not a bearer token: letters, digits and ._~+/- only, then = at the end")
    return text


def _names_a_receiver(env: Mapping[str, str]) -> bool:
    """Return whether OpenTelemetry's own variables name a receiver for traces."""
    is_off = env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return not is_off and any(env.get(name, "").strip() for name in names)


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(dict.fromkeys(text.replace(",", " ").split()))
    if "*" in origins and len(origins) > 1:
        raise ValueError("* stands for every origin: alone, or not at all")
    for origin in origins:
        # Exactly as a browser sends an origin (RFC 6454, section 7): otherwise it would never match. "null" is not
        # allowed, because it could be any page.
        match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", origin)
        if origin != "*" and (match is None or (match[1], match[3]) in (("http", ":80"), ("https", ":443"))):
            raise ValueError(
                f"not * nor origins like https://www.example.com, in lower case, without path and usual port: {origin}"
            )
    return origins


def _redis_url(text: str) -> str:
    if not re.match(r"rediss?://", text):
        raise ValueError("does not begin with redis:// or rediss://")
    try:
        parse_url(text)  # type: ignore[no-untyped-call] # redis-py types only some of itself
    except ValueError:
        # Do not repeat the address or the error's text: both may contain a password.
        raise ValueError("not an address like redis://:password@host:6379/0") from None
    return text


#: The options that may follow the `?` of a PostgreSQL address: options of libpq that the driver supports.
_POSTGRESQL_OPTIONS = (
    *("application_name", "channel_binding", "connect_timeout", "dbname", "host", "options", "passfile", "password"),
    *("port", "sslcert", "sslcrl", "sslkey", "sslmode", "sslnegotiation", "sslpassword", "sslrootcert"),
    *("ssl_max_protocol_version", "ssl_min_protocol_version", "target_session_attrs", "user"),
)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def _database_url(text: str) -> str:
    if match := re.match(r"postgres(ql)?(\+asyncpg)?://", text):
        _need("asyncpg")
        return _postgresql_url(f"postgresql://{text[match.end() :]}")
    if not re.fullmatch(r"sqlite(\+aiosqlite)?:///[^?:][^?]*", text):
        raise ValueError("is neither sqlite:/// and the path of a file, without options, nor begins with postgres://")
    return text


def _postgresql_url(text: str) -> str:
    # The errors do not repeat the wrong part, which may contain the password.
    head, *query = text.split("?", 1)
    # In libpq a + is a plus sign. The driver would read it as a space.
    text = "?".join([head, *(options.replace("+", "%2B") for options in query)])
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError("not an address like postgres://user:password@host:5432/database?sslmode=require") from None
    if parts.fragment or parts.netloc.count("@") > 1:
        raise ValueError("has a # or a second @ in it: in a password they are %23 and %40")
    if not re.fullmatch(r"([^@]*@)?(\[[^]]*\]|[^:,]*)(:\d+)?(,(\[[^]]*\]|[^:,]*)(:\d+)?)*", parts.netloc):
        raise ValueError("its port is no number; in a password, : and / are %3A and %2F")
    hosts, ports = (options.get(name, parts.netloc.rpartition("@")[2]).count(",") + 1 for name in ("host", "port"))
    if not re.fullmatch(r"(\d+(,\d+)*)?", options.get("port", ""), re.ASCII) or ports not in (1, hosts):
        raise ValueError("its port is no number, or there are more or fewer ports than hosts")
    if not options.keys() <= set(_POSTGRESQL_OPTIONS):
        raise ValueError(f"has an option after its ? that is not one of {', '.join(_POSTGRESQL_OPTIONS)}")
    mode = options.get("sslmode", "prefer")
    if mode not in _SSL_MODES:
        raise ValueError(f"its sslmode is not one of {', '.join(_SSL_MODES)}")
    authority = options.get("sslrootcert", "system")
    if "sslrootcert" in options and authority == "system" and mode != "verify-full":
        raise ValueError("its sslrootcert=system needs sslmode=verify-full")
    if authority != "system" and not os.access(authority, os.R_OK):
        raise ValueError(f"its sslrootcert is no file that can be read: {authority}")
    if options.get("channel_binding") == "require":
        raise ValueError("its channel_binding=require is more than the driver can: sslmode=verify-full is as good")
    if not re.fullmatch(r"\d{1,4}", options.get("connect_timeout", "0"), re.ASCII):
        raise ValueError("its connect_timeout is no whole number of seconds")
    return text
