"""What machines share: a PostgreSQL and an object store of this test run, and who vouches for its Redis."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import trustme

from tests.apart.machines import hub
from tests.objects import ObjectServer, environment, new_prefix
from tests.postgresql import Postgresql, started


class Stores:
    """The servers. They are started when they are first needed, before the first service, and end with the test run."""

    def __init__(self) -> None:
        self._until_the_end = ExitStack()
        folder = Path(self._until_the_end.enter_context(TemporaryDirectory(prefix="asgilook-apart-")))
        self.postgresql: Postgresql = self._until_the_end.enter_context(started())
        self.objects = ObjectServer(folder / "objects")
        self._until_the_end.callback(self.objects.end)
        issuer = trustme.CA()
        self.issuer, self.certificate = folder / "issuer.pem", folder / "certificate.pem"
        issuer.cert_pem.write_to_path(str(self.issuer))
        issuer.issue_cert(hub()).private_key_and_cert_chain_pem.write_to_path(str(self.certificate))

    def settings(self) -> dict[str, str]:
        """Return the settings of a service whose ledger and storage are new and empty."""
        url = self.postgresql.database().replace("127.0.0.1", hub())
        store = environment(f"http://{hub()}:{self.objects.port}")
        return {"DATABASE_URL": url, "ASGI_LOOK_STORAGE": new_prefix(), **store}

    def end(self) -> None:
        self._until_the_end.close()


@functools.cache
def stores() -> Stores:
    """Return this test run's stores."""
    return Stores()


def end_stores() -> None:
    """End what was started, if it was."""
    if stores.cache_info().currsize:
        stores().end()
        stores.cache_clear()
