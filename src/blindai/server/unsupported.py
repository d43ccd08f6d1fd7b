"""Extensions of the protocol that this server has not, and says so.

Always true: their paths answer 501 in the protocol's form of an error, with the reason, and
read nothing of the request.

Specification: Triton's extensions for shared memory (system and CUDA), trace and logging.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blindai.errors import InferenceError
from blindai.server.app import Response, Routes, error_response

if TYPE_CHECKING:
    from blindai.server.app import Handler
    from blindai.server.request import Request

SHARED_MEMORY: Final = (
    "shared memory is not supported: no memory outside the trusted environment is read, "
    "send tensors in the request"
)
TRACE: Final = "tracing is not supported: a trace would hold what requests hold"
LOGGING: Final = "log settings are not supported: what is logged is fixed, and holds no data"
_NOT_IMPLEMENTED: Final = 501


def unsupported_routes() -> Routes:
    """Return the paths of extensions that this server has not."""
    get_shared = {"GET": _refuse(SHARED_MEMORY)}
    post_shared = {"POST": _refuse(SHARED_MEMORY)}
    trace = dict.fromkeys(("GET", "POST"), _refuse(TRACE))
    routes: dict[bytes, dict[str, Handler]] = {
        b"/v2/trace/setting": trace,
        b"/v2/models/{name}/trace/setting": trace,
        b"/v2/logging": dict.fromkeys(("GET", "POST"), _refuse(LOGGING)),
    }
    for kind in (b"systemsharedmemory", b"cudasharedmemory"):
        routes |= {
            b"/v2/%s/status" % kind: get_shared,
            b"/v2/%s/region/{name}/status" % kind: get_shared,
            b"/v2/%s/region/{name}/register" % kind: post_shared,
            b"/v2/%s/unregister" % kind: post_shared,
            b"/v2/%s/region/{name}/unregister" % kind: post_shared,
        }
    return routes


def _refuse(reason: str) -> Handler:
    response = error_response(InferenceError(reason), status=_NOT_IMPLEMENTED)

    async def refuse(_: Request) -> Response:
        return response

    return refuse
