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

from splitattn.errors import ImageError
from splitattn.explanation.explanation import Explanation
from splitattn.images.encode import jpeg
from splitattn.serving.bodies import Sent, check_media_type, is_file, read_images
from splitattn.serving.guard import Guard, error_response
from splitattn.serving.inference_protocol import InferenceProtocol
from splitattn.serving.metrics import CONTENT_TYPE
from splitattn.serving.openapi import describe_service
from splitattn.serving.request_errors import RequestError, bad_image, bad_request, bad_value
from splitattn.serving.served import (
    Options,
    Served,
    check_parameters,
    explanation_as_json,
    served,
)
from splitattn.serving.service import Service, together
from splitattn.serving.settings import Settings

if TYPE_CHECKING:
    from splitattn.serving.served import Model

Handler = Callable[[Service, Request], Awaitable[Response]]
_PROBES = ("/livez", "/readyz")
_METHODS = ("auto", "cam", "layercam")  # others take minutes
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
    settings = settings or Settings()
    return application(served(model, explain=settings.explain), settings)


def application(model: Served, settings: Settings) -> Starlette:
    """`create_app` for a `Served`."""
    service = Service(model, settings)
    protocol = InferenceProtocol(service)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Not awaited: while the model loads, the server answers 503.
        app.state.starting = asyncio.create_task(service.in_thread(service.start))
        try:
            yield
        finally:
            service.stop()
            try:
                await app.state.starting
            finally:
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
            Middleware(
                Guard,  # type: ignore[arg-type, unused-ignore]
                settings=settings,
                metrics=service.metrics,
                paths=paths,
                probes=[*_PROBES, *protocol.probes()],
                is_ending=lambda: service.is_ending,
            )
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
        is_list, answers = await service.run(request, _answers(service, body, kind, options))
    about = {"model": service.served.model, "weights": service.served.weights}
    if is_list:
        return JSONResponse({"results": answers, **about})
    (answer,) = answers
    if "error" in answer:
        return JSONResponse({"error": answer["error"]}, answer["error"]["status"])
    return JSONResponse({**answer, **about})


async def _answers(
    service: Service, body: bytes, kind: str, options: Options
) -> tuple[bool, list[dict[str, Any]]]:
    """Whether the answer is a list, and the answer for each image."""
    sent = await _read(service, body, kind, service.settings.max_images)

    async def one(name: str, content: bytes | RequestError) -> dict[str, Any]:
        try:
            found = await service.answer(name, content, options)
        except ImageError as error:
            found = bad_image(str(error)).as_dict()
        except RequestError as error:
            found = error.as_dict()
        return {"name": name, **found}

    with service.admitted(len(sent.images)):
        return sent.is_list, await together(one(*image) for image in sent.images)


async def _read(service: Service, body: bytes, kind: str, most: int) -> Sent:
    """Read the images of a body, see `read_images`. Forms and JSON are parsed in a thread."""
    if is_file(kind):
        return read_images(body, kind, most)
    return await service.read(read_images, body, kind, most)


async def _explain(service: Service, request: Request) -> Response:
    service.check_ready()
    if not service.served.explains:
        raise RequestError(
            404,
            "not_found",
            "explanations need a classifier, served without --no-explain; export files for it with "
            f"--class-maps; got {service.served.weights} for {service.served.task}",
        )
    query = request.query_params
    check_parameters(query, ("label", "method"))
    label, method = query.get("label"), query.get("method", "auto")
    if method not in _METHODS:
        raise bad_value(f"method must be {', '.join(_METHODS)}, got {method!r:.60}")
    kind = request.headers.get("content-type", "")
    check_media_type(kind)
    as_picture = "image/jpeg" in request.headers.get("accept", "")

    def finish(found: Explanation) -> Response:
        if as_picture:
            return Response(jpeg(found.overlay()), media_type="image/jpeg")
        return JSONResponse(explanation_as_json(found))

    async def explained(body: bytes) -> Response:
        ((name, content),) = (await _read(service, body, kind, 1)).images
        with service.admitted(1):
            return await service.explain(name, content, label, method, finish)

    try:
        async with service.body(request) as body:
            return await service.run(request, explained(body))
    except ImageError as error:
        raise bad_image(str(error)) from error


async def _model(service: Service, request: Request) -> Response:
    check_parameters(request.query_params, ())
    own, settings = service.served, service.settings
    about = {
        "model": own.model,
        "weights": own.weights,
        "task": own.task,
        "engine": own.engine,
        "classes": list(own.classes),
        "explains": own.explains,
        "size": own.size,
        "parameters": dict(own.parameters),
        "limits": {
            "bytes": settings.max_body,
            "images": settings.max_images,
            "pixels": settings.max_pixels,
            "seconds": settings.deadline,
        },
        "version": version("splitattn"),
    }
    return JSONResponse(about)


async def _livez(service: Service, request: Request) -> Response:
    del request
    live = service.state != "failed"
    return JSONResponse({"live": live}, 200 if live else 500)


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
    """The answer for unknown paths and methods, which Starlette refuses by itself."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        fault = RequestError(404, "not_found", f"there is no path {request.url.path!r:.80}")
    elif error.status_code == 405:
        fault = RequestError(
            405,
            "method_not_allowed",
            f"{request.url.path} does not take {request.method}; use "
            f"{(error.headers or {}).get('Allow', 'another method')}",
            error.headers,
        )
    else:
        fault = bad_request(str(error.detail))
    return error_response(fault)
