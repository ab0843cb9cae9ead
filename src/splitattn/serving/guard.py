"""Middleware around all requests: checks key and host, counts, logs, and answers errors."""

import hmac
import logging
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitattn.serving.logs import LOG
from splitattn.serving.metrics import Metrics
from splitattn.serving.request_errors import RequestError
from splitattn.serving.settings import Settings, same_form

_CLIENT_LEFT = 499  # as nginx logs it; nobody is there to be answered
_ANYBODY = ("/", "/page.css", "/page.js")
_METRICS = "/metrics"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_LONGEST_ID = 64


class Guard:
    """ASGI middleware. It checks the key and the host, and answers every error in one shape.

    Args:
        app: the application that it wraps.
        settings: key and trusted hosts.
        metrics: counts the requests.
        paths: that are counted by name; all others are "other".
        probes: paths that need no key, with any host: orchestrators call them by IP address.
        is_ending: whether the service is about to end. Answers then close their connections, so
            that clients send no more requests on them.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        paths: Sequence[str],
        probes: Sequence[str],
        is_ending: Callable[[], bool],
    ) -> None:
        self._app, self._metrics, self._is_ending = app, metrics, is_ending
        self._paths, self._probes = frozenset(paths), frozenset(probes)
        self._key = settings.key
        self._hosts = tuple(map(same_form, settings.trusted_hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        status = 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    own.setdefault(name, value)
                own["X-Request-ID"] = request_id
                if self._is_ending():
                    own["Connection"] = "close"
            await send(message)

        fault = ""
        try:
            self._check(scope["path"], headers)
            await self._app(scope, receive, send_guarded)
        except ClientDisconnect:
            status = _CLIENT_LEFT
        except RequestError as error:
            await error_response(error)(scope, receive, send_guarded)
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
            LOG.exception("a request failed", extra={"data": {"request_id": request_id}})
            if not status:
                answer = RequestError(500, "internal", "the service failed: see its log")
                await error_response(answer)(scope, receive, send_guarded)
        finally:
            seconds = time.monotonic() - started
            self._note(scope, status, seconds, request_id, fault)

    def _check(self, path: str, headers: Headers) -> None:
        if path in self._probes:
            return
        host = _host(headers.get("host", ""))
        if self._hosts and host not in self._hosts and path != _METRICS:
            raise RequestError(
                400,
                "untrusted_host",
                f"Host must be one of {', '.join(self._hosts)}, got {host!r:.60}; start the "
                "service with --trusted-host, or trusted_hosts in Settings, to allow another",
            )
        key = self._key
        if key is None or path in _ANYBODY:
            return
        given = headers.get("authorization", "")
        scheme, _, given = given.partition(" ")
        wrong = scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode(), key.encode()
        )
        if wrong:
            raise RequestError(
                401,
                "unauthorized",
                "the header must be 'Authorization: Bearer KEY' with the service's key",
                {"WWW-Authenticate": "Bearer"},
            )

    def _note(self, scope: Scope, status: int, seconds: float, request_id: str, fault: str) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        client = scope.get("client")
        data = {
            "request_id": request_id,
            "client": client[0] if client else None,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 6),
        }
        if fault:
            data["fault"] = fault
        quiet = path in self._probes or path == _METRICS
        LOG.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"data": data})


def error_response(error: RequestError) -> JSONResponse:
    return JSONResponse(error.as_dict(), error.status, error.headers)


def _host(header: str) -> str:
    """The header without its port."""
    if header.startswith("["):
        return same_form(header.partition("]")[0].lstrip("["))
    return same_form(header.partition(":")[0])


def _request_id(headers: Headers) -> str:
    """The client's X-Request-ID, if it is a plain word, or else a new one."""
    given: str = headers.get("x-request-id", "")
    plain = given.replace("-", "").replace("_", "")
    if plain.isascii() and plain.isalnum() and len(given) <= _LONGEST_ID:
        return given
    return uuid.uuid4().hex
