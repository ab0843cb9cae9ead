"""The service as an ASGI application."""

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from splitattn.images.encode import jpeg
from splitattn.serving.bodies import check_media_type, read_images
from splitattn.serving.guard import Guard, error_response
from splitattn.serving.inference_protocol import InferenceProtocol
from splitattn.serving.metrics import CONTENT_TYPE
from splitattn.serving.openapi import describe_service
from splitattn.serving.request_errors import RequestError, bad_request
from splitattn.serving.served import (
    Served,
    ServedClassifier,
    explanation_as_json,
    served,
)
from splitattn.serving.service import Service, asked
from splitattn.serving.settings import Settings

if TYPE_CHECKING:
    from splitattn.serving.served import Model

Handler = Callable[[Service, Request], Awaitable[Response]]
_PAGE = ("index.html", "page.css", "page.js")
_CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src blob: data:",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)


def create_app(model: "Model", settings: Settings | None = None) -> Starlette:
    """An ASGI application that serves a model.

    It compiles when it starts (ASGI's lifespan), and `/readyz` says 503 until then. Run it in one
    process: several would each hold the model and count only their own requests.

    Args:
        model: a `Classifier`, `Detector` or `Segmenter`.
        settings: None takes the defaults.
    """
    return application(served(model), settings or Settings())


def application(model: Served, settings: Settings) -> Starlette:
    """`create_app` for a model that is behind its interface already."""
    service = Service(model, settings)
    protocol = InferenceProtocol(service)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Not awaited: the server answers, that it is loading, while it loads.
        app.state.starting = asyncio.create_task(asyncio.to_thread(service.start))
        try:
            yield
        finally:
            service.stop()
            await app.state.starting
            await asyncio.to_thread(service.close)

    post: dict[str, Handler] = {"/v1/predict": _predict, "/v1/explain": _explain}
    get: dict[str, Handler] = {
        "/v1/model": _model,
        "/livez": _livez,
        "/readyz": _readyz,
        "/metrics": _metrics,
        "/openapi.json": _openapi,
    }
    routes = [
        *(
            Route(path, partial(handler, service), methods=["POST"])
            for path, handler in post.items()
        ),
        *(Route(path, partial(handler, service), methods=["GET"]) for path, handler in get.items()),
        *protocol.routes(),
        *(_page() if settings.page else ()),
    ]
    paths = [*post, *get, *protocol.paths(), "/"]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Guard, settings=settings, metrics=service.metrics, paths=paths)  # type: ignore[arg-type, unused-ignore]
        ],
        exception_handlers={HTTPException: _as_json},
    )
    app.state.service = service
    return app


async def _predict(service: Service, request: Request) -> Response:
    service.check_ready()
    options = service.served.options(request.query_params)
    kind = request.headers.get("content-type", "")
    check_media_type(kind)
    async with service.body(request) as body:
        sent = await service.read(read_images, body, kind, service.settings.max_images)
        answers = await service.predict(request, sent, options)
    about = {"model": service.served.model, "weights": service.served.weights}
    if sent.is_list:
        return JSONResponse({"results": answers, **about})
    (answer,) = answers
    if "error" in answer:
        return JSONResponse({"error": answer["error"]}, answer["error"]["status"])
    return JSONResponse({**answer, **about})


async def _explain(service: Service, request: Request) -> Response:
    service.check_ready()
    query = asked(request.query_params, "label", "method")
    kind = request.headers.get("content-type", "")
    check_media_type(kind)
    async with service.body(request) as body:
        sent = await service.read(read_images, body, kind, 1)
        ((name, content),) = sent.images
        if isinstance(content, RequestError):
            raise content
        found = await service.explain(
            request, name, content, query.get("label"), query.get("method", "auto")
        )
    if "image/jpeg" in request.headers.get("accept", ""):
        picture = await service.in_thread(lambda: jpeg(found.overlay()))
        return Response(picture, media_type="image/jpeg")
    return JSONResponse(await service.in_thread(explanation_as_json, found))


async def _model(service: Service, request: Request) -> Response:
    asked(request.query_params)
    own, settings = service.served, service.settings
    about: dict[str, Any] = {
        "model": own.model,
        "weights": own.weights,
        "task": own.task,
        "engine": own.engine,
        "classes": list(own.classes),
        "explains": service.explains,
        "parameters": dict(own.parameters),
        "limits": {
            "bytes": settings.max_body,
            "images": settings.max_images,
            "pixels": settings.max_pixels,
            "seconds": settings.deadline,
        },
        "version": version("splitattn"),
    }
    if isinstance(own, ServedClassifier):
        about["size"] = own.classifier.preprocessing.size
    return JSONResponse(about)


async def _livez(service: Service, request: Request) -> Response:
    del service, request
    return JSONResponse({"live": True})


async def _readyz(service: Service, request: Request) -> Response:
    del request
    ready = service.state == "ready"
    return JSONResponse({"ready": ready, "state": service.state}, 200 if ready else 503)


async def _metrics(service: Service, request: Request) -> Response:
    del request
    return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


async def _openapi(service: Service, request: Request) -> Response:
    del request
    return JSONResponse(describe_service(service))


def _page() -> list[Route]:
    """The web page's files, which are read once."""
    folder = files("splitattn.serving") / "page"

    def route(name: str) -> Route:
        content = (folder / name).read_bytes()
        kind = mimetypes.guess_type(name)[0]

        async def file(request: Request) -> Response:
            del request
            headers = {"Content-Security-Policy": _CSP, "Cache-Control": "no-cache"}
            return Response(content, media_type=kind, headers=headers)

        return Route("/" if name == "index.html" else f"/{name}", file, methods=["GET"])

    return [route(name) for name in _PAGE]


async def _as_json(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: paths and methods that are not there."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        fault = RequestError(404, "not_found", f"nothing is at {request.url.path!r:.80}")
    elif error.status_code == 405:
        fault = RequestError(
            405,
            "method_not_allowed",
            f"{request.url.path} does not take {request.method}",
            error.headers,
        )
    else:
        fault = bad_request(str(error.detail))
    return error_response(fault)
