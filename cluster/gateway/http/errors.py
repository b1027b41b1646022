"""From an error to an HTTP answer: status, OpenAI's error object, when to come back."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from cluster.errors import MoemeshError, Overloaded, Unavailable
from cluster.gateway.caller import request_fields

log = logging.getLogger(__name__)

STATUS: Mapping[str, int] = {
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 400,  # a key of the body; clients of this dialect send it again after a 501
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""By gRPC code; what is missing is ours: 500."""

TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
UNAVAILABLE_RETRY_S = 1.0


def status_of(error: MoemeshError) -> int:
    return STATUS.get(error.code, 500)


def body_of(error: MoemeshError, status: int | None = None) -> dict[str, Any]:
    """`{"error": {...}}` with the keys that OpenAI's clients read; code is the name of our error's class."""
    kind = TYPES.get(status or status_of(error), "server_error")
    return {"error": {"message": str(error), "type": kind, "param": None, "code": type(error).__name__}}


def headers_of(error: MoemeshError) -> dict[str, str]:
    if isinstance(error, Overloaded):
        return {"retry-after": str(math.ceil(error.retry_after_s))}
    if isinstance(error, Unavailable):
        return {"retry-after": str(math.ceil(UNAVAILABLE_RETRY_S))}
    return {"www-authenticate": "Bearer"} if error.code == "UNAUTHENTICATED" else {}


def response_of(error: MoemeshError, status: int | None = None) -> JSONResponse:
    """status: where the code alone does not tell it, as for a body that is too large."""
    return JSONResponse(body_of(error, status), status or status_of(error), headers_of(error))


def known(error: Exception) -> MoemeshError:
    """`error` itself if it is ours. Else a bug: it is logged, and the client learns no more than that."""
    if isinstance(error, MoemeshError):
        return error
    log.error("a request failed inside the gateway", exc_info=error, extra={"fields": request_fields()})
    return MoemeshError("internal error in the gateway; its log has the traceback")
