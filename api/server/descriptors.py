"""The process's limit of open files, which bounds its connections."""

from __future__ import annotations

import contextlib
import resource

#: Each connection takes one, and a file while it is served or stored.
_PER_CONNECTION = 2
#: Ledger, Redis, standard streams and the like.
_OTHERS = 64


def allow_connections(wanted: int) -> int:
    """Raise the limit of open files as far as needed and permitted; return how many connections there is room for."""
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
