"""The process's limit of open files, which limits its connections."""

from __future__ import annotations

import contextlib
import resource

#: One for the connection, and one for a file that is served or stored.
_PER_CONNECTION = 2
#: For the ledger, Redis, standard streams and so on.
_OTHERS = 64


def allow_connections(wanted: int) -> int:
    """Raise the limit of open files as far as needed and permitted. Returns how many connections fit into it."""
    needed = wanted * _PER_CONNECTION + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(ValueError, OSError):
            most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - _OTHERS) // _PER_CONNECTION))
