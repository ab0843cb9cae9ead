"""Errors that requests are answered with, all in one JSON shape."""

from collections.abc import Mapping
from typing import Any

RETRY_AFTER = 1  # seconds


class RequestError(Exception):
    """An error that a request is answered with.

    Args:
        status: HTTP status, 400 or more.
        code: what programs compare: "queue_full", "bad_image", ...
        message: the rule, the value received and the fix, in one line.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {"error": {"status": self.status, "code": self.code, "message": self.message}}


def bad_request(message: str) -> RequestError:
    return RequestError(400, "bad_request", message)


def bad_value(message: str) -> RequestError:
    return RequestError(422, "bad_value", message)


def bad_image(message: str) -> RequestError:
    return RequestError(422, "bad_image", message)


def too_large(message: str) -> RequestError:
    return RequestError(413, "too_large", message)


def queue_full(message: str) -> RequestError:
    return RequestError(429, "queue_full", message, {"Retry-After": str(RETRY_AFTER)})


def unavailable(state: str) -> RequestError:
    message = "the service could not start" if state == "failed" else f"the service is {state}"
    return RequestError(503, state, f"{message}: try again", {"Retry-After": str(RETRY_AFTER)})
