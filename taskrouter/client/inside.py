"""What a caller of a client is in: leases and a pipeline, carried by context variables as the library carries them.

Tasks started inside are inside, too, until the block is left.
"""

from __future__ import annotations

import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskrouter.client.leases import RemoteLease
    from taskrouter.client.pipelines import RemotePipeline
    from taskrouter.client.transport import Transport

LEASE, PIPELINE = "x-taskrouter-lease", "x-taskrouter-pipeline"

_HELD: ContextVar[tuple[weakref.ref[RemoteLease], ...]] = ContextVar("taskrouter_remote_held", default=())
RUN: ContextVar[RemotePipeline | None] = ContextVar("taskrouter_remote_run", default=None)
"""The pipeline that the caller is in, the innermost."""


def hold(lease: RemoteLease) -> None:
    """The caller is in this lease now. Its context keeps no lease alive: one that is dropped must be collectable."""
    _HELD.set((*_HELD.get(), weakref.ref(lease)))


def let_go(lease: RemoteLease) -> None:
    """The caller has left this lease."""
    _HELD.set(tuple(ref for ref in _HELD.get() if ref() is not lease))


def held_lease(transport: Transport, task: str, option: str | None) -> RemoteLease | None:
    """The lease on this task that the caller is in, if any: of this option, where one is named."""
    for ref in _HELD.get():
        lease = ref()
        if lease is not None and lease.serves(transport, task, option):
            return lease
    return None


def pipeline_headers(transport: Transport) -> dict[str, str]:
    """What says that a request counts for the pipeline that the caller is in."""
    run = RUN.get()
    name = None if run is None else run.name_for(transport)
    return {} if name is None else {PIPELINE: name}
