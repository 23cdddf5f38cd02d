"""Which paths of a model's own server callers may ask for: by the engine that serves it."""

from __future__ import annotations

from taskrouter.backends.engines.backend import EngineBackend
from taskrouter.errors import UnsupportedVerb
from taskrouter.http.asked import Asked
from taskrouter.http.failing import Refused
from taskrouter.manager.asking import raw_request


def check_path(it: Asked, path: str) -> None:
    """Raises ``Refused`` (403) for a path that isn't one of those, whichever option answers; before anything is loaded.

    ``BadInput`` for what is no path, ``UnsupportedVerb`` where no engine serves the task.
    """
    raw_request(path, None)
    served = [
        (request, backend)
        for request, backend in it.backends()
        if isinstance(backend, EngineBackend)
    ]  # fmt: skip
    if not served:
        raise UnsupportedVerb(f"no engine serves {it.named}: there is no server of its own to ask for {path!r:.200}")
    for request, backend in served:
        if not backend.infers(request, path):
            may = ", ".join(sorted(backend.adapter.inference))
            raise Refused(
                403, f"{path!r:.200} of {request.label} can't be asked for over HTTP; these paths can, as they stand: "
                f"{may}", code="path_not_allowed",
            )  # fmt: skip
