"""The Open Inference Protocol, version 2: https://github.com/kserve/open-inference-protocol.

Images come as encoded files (BYTES, (N,)) or as pixels (UINT8, (N, H, W, C)), in JSON or in the
binary extension that Triton's client speaks. Files in JSON are base64. A classifier gives
"probabilities" (FP32, (N, classes)) and "labels" (BYTES, (N,)); a detector or segmenter gives
"answers" (BYTES, (N,)), each the JSON that `/v1/predict` gives.
"""

import io
import json
import struct
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from splitattn.errors import ImageError
from splitattn.serving.bodies import decoded, read_json
from splitattn.serving.request_errors import RequestError, bad_image, bad_request, too_large
from splitattn.serving.service import Service, together

_HEADER_LENGTH = "inference-header-content-length"
_SERVER, _INPUT = "splitattn", "image"
_LONGEST_SIDE, _MOST_DIGITS = 2**31 - 1, 12
_EXTENSIONS = ["binary_tensor_data"]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A request: its encoded images, and what it wants back."""

    id: str | None
    images: tuple[bytes, ...]
    outputs: tuple[str, ...]
    binary: frozenset[str]


class InferenceProtocol:
    """The routes below `/v2`.

    Args:
        service: gives the answers.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._name = service, service.served.model
        self._outputs = service.served.outputs

    def paths(self) -> list[str]:
        return [
            "/v2",
            "/v2/health/live",
            "/v2/health/ready",
            f"/v2/models/{self._name}",
            f"/v2/models/{self._name}/ready",
            f"/v2/models/{self._name}/infer",
        ]

    def probes(self) -> list[str]:
        """Paths of the health checks."""
        return ["/v2/health/live", "/v2/health/ready", f"/v2/models/{self._name}/ready"]

    def routes(self) -> list[Route]:
        server, live, ready, model, model_ready, infer = self.paths()
        return [
            Route(server, self._server, methods=["GET"]),
            Route(live, self._live, methods=["GET"]),
            Route(ready, self._ready, methods=["GET"]),
            Route(model, self._model, methods=["GET"]),
            Route(model_ready, self._ready, methods=["GET"]),
            Route(infer, self._infer, methods=["POST"]),
        ]

    async def _server(self, request: Request) -> Response:
        del request
        return JSONResponse(
            {"name": _SERVER, "version": version("splitattn"), "extensions": _EXTENSIONS}
        )

    async def _live(self, request: Request) -> Response:
        del request
        live = self._service.state != "failed"
        return JSONResponse({"live": live}, 200 if live else 500)

    async def _ready(self, request: Request) -> Response:
        del request
        ready = self._service.state == "ready"
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def _model(self, request: Request) -> Response:
        del request
        return JSONResponse(
            {
                "name": self._name,
                "versions": ["1"],
                "platform": self._service.served.engine,
                "inputs": [{"name": _INPUT, "datatype": "BYTES", "shape": [-1]}],
                "outputs": [
                    {"name": name, "datatype": datatype, "shape": shape}
                    for name, (datatype, shape) in self._outputs.items()
                ],
            }
        )

    async def _infer(self, request: Request) -> Response:
        try:
            return await self._answered(request)
        except RequestError as error:  # the protocol has a shape of its own for errors
            return JSONResponse({"error": error.message}, error.status, error.headers)

    async def _answered(self, request: Request) -> Response:
        self._service.check_ready()
        length = request.headers.get(_HEADER_LENGTH)
        async with self._service.body(request) as body:
            try:
                return await self._service.run(request, self._inferred(body, length))
            except ImageError as error:
                raise bad_image(str(error)) from error

    async def _inferred(self, body: bytes, header_length: str | None) -> Response:
        service, served = self._service, self._service.served
        asked = await service.read(self._read, body, header_length)

        async def one(name: str, content: bytes) -> dict[str, Any]:
            def finish(loaded: Any, result: Any) -> dict[str, Any]:
                return served.tensors(loaded, result, name)

            return await service.each(name, content, {}, finish)

        with service.admitted(len(asked.images)):
            rows = await together(one(f"image {i}", image) for i, image in enumerate(asked.images))
        return self._response(asked, rows)

    def _read(self, body: bytes, header_length: str | None) -> _Asked:
        text, rest = body, b""
        if header_length is not None:
            digits = header_length.isdecimal() and len(header_length) <= _MOST_DIGITS
            if not digits or int(header_length) > len(body):
                raise bad_request(
                    f"Inference-Header-Content-Length must be at most the body's {len(body)} "
                    f"bytes, got {header_length!r:.40}"
                )
            text, rest = body[: int(header_length)], body[int(header_length) :]
        value = read_json(text)
        inputs = value.get("inputs")
        if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
            raise bad_request(f"inputs must be a list with one tensor, {_INPUT!r}")
        outputs, binary = self._wanted(value)
        identity = value.get("id")
        if identity is not None and not _is_text(identity):
            raise bad_request(f"id must be text, got {identity!r:.60}")
        return _Asked(
            id=identity,
            images=self._images(inputs[0], rest),
            outputs=outputs,
            binary=binary,
        )

    def _images(self, tensor: dict[str, Any], rest: bytes) -> tuple[bytes, ...]:
        most = self._service.settings.max_images
        shape, kind = tensor.get("shape"), tensor.get("datatype")
        whole = isinstance(shape, list) and all(
            type(n) is int and 0 < n <= _LONGEST_SIDE for n in shape
        )
        if not whole or not shape:
            raise bad_request(
                f"shape must be a list of numbers from 1 to {_LONGEST_SIDE}, got {shape!r:.60}"
            )
        if shape[0] > most:
            raise too_large(f"one request may hold {most} images, got {shape[0]}")
        size = _parameters(tensor).get("binary_data_size")
        if size is not None and (type(size) is not int or size != len(rest)):
            raise bad_request(
                f"binary_data_size must be what follows the header, {len(rest)} bytes, "
                f"got {size!r:.40}"
            )
        data = tensor.get("data")
        if kind == "BYTES" and len(shape) == 1:
            images = _elements(rest, shape[0]) if size is not None else _encoded(data)
        elif kind == "UINT8" and len(shape) == 4:
            images = _pixels(shape, rest if size is not None else data)
        else:
            raise bad_request(
                f"{_INPUT} must be BYTES (N,) or UINT8 (N, H, W, C), got {kind!r:.40} with "
                f"{len(shape)} axes"
            )
        if len(images) != shape[0]:
            raise bad_request(f"shape says {shape[0]} images, data has {len(images)}")
        return tuple(images)

    def _wanted(self, value: dict[str, Any]) -> tuple[tuple[str, ...], frozenset[str]]:
        """Names of the outputs, and which of them are to be binary."""
        outputs = value.get("outputs") or [{"name": name} for name in self._outputs]
        if not isinstance(outputs, list) or not all(isinstance(each, dict) for each in outputs):
            raise bad_request("outputs must be a list of objects")
        names = tuple(each.get("name") for each in outputs)
        if not all(name in self._outputs for name in names):
            raise bad_request(f"outputs are {', '.join(self._outputs)}, got {names!r:.80}")
        everything = bool(_parameters(value).get("binary_data_output"))
        binary = {
            str(each["name"])
            for each in outputs
            if _parameters(each).get("binary_data", everything)
        }
        return tuple(map(str, names)), frozenset(binary)

    def _response(self, asked: _Asked, rows: list[dict[str, Any]]) -> Response:
        """The outputs of all images, as JSON or with binary tensors after it."""
        tensors, tail = [], b""
        for name in asked.outputs:
            datatype, _ = self._outputs[name]
            numbers = datatype == "FP32"
            values = [row[name] for row in rows]
            value = np.stack(values).astype("<f4") if numbers else np.array(values, object)
            tensor: dict[str, Any] = {
                "name": name,
                "datatype": datatype,
                "shape": list(value.shape),
            }
            if name in asked.binary:
                content = value.tobytes() if numbers else b"".join(map(_element, value))
                tensor["parameters"] = {"binary_data_size": len(content)}
                tail += content
            else:
                tensor["data"] = value.ravel().tolist()
            tensors.append(tensor)
        answer: dict[str, Any] = {
            "model_name": self._name,
            "model_version": "1",
            "outputs": tensors,
        }
        if asked.id is not None:
            answer["id"] = asked.id
        if not asked.binary:
            return JSONResponse(answer)
        head = json.dumps(answer).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return Response(head + tail, media_type="application/octet-stream", headers=headers)


def _encoded(data: object) -> list[bytes]:
    """Images from JSON, where they are base64."""
    if not isinstance(data, list):
        raise bad_request("data must be a list of base64 text")
    images = []
    for text in data:
        image = decoded(text)
        if isinstance(image, RequestError):
            raise image
        images.append(image)
    return images


def _elements(content: bytes, count: int) -> list[bytes]:
    """Images from the binary extension: the length of each in four bytes, then its bytes."""
    images, start = [], 0
    for _ in range(count):
        end = start + 4 + int.from_bytes(content[start : start + 4], "little")
        if not start + 4 <= end <= len(content):
            raise bad_request("a BYTES tensor is cut off: send it again")
        images.append(content[start + 4 : end])
        start = end
    if start < len(content):
        raise bad_request(f"a BYTES tensor has {len(content) - start} bytes too many")
    return images


def _element(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<I", len(content)) + content


def _pixels(shape: list[int], data: Any) -> list[bytes]:
    """Images from UINT8 (N, H, W, C), as bytes or as a list of numbers, flat or nested."""
    values: np.ndarray[Any, Any]
    if isinstance(data, bytes):
        values = np.frombuffer(data, np.uint8)
    else:
        try:
            values = np.array(data)
        except (ValueError, OverflowError):
            raise bad_request("data must be flat or have equally long lists") from None
        least, most = (values.min(), values.max()) if values.dtype.kind in "iu" else (-1, -1)
        if not 0 <= least <= most <= 255:
            raise bad_request("data must be whole numbers from 0 to 255, got others")
        if values.ndim > 1 and list(values.shape) != shape:
            raise bad_request(f"data must be flat or of shape {shape}, got {[*values.shape]}")
        values = values.astype(np.uint8)
    if values.size != prod(shape):
        raise bad_request(f"shape {shape} needs {prod(shape)} numbers, got {values.size}")
    return [*map(_as_file, values.reshape(shape))]


def _as_file(image: np.ndarray[Any, Any]) -> bytes:
    """An array (H, W, C) as a file that `decode` takes."""
    stream = io.BytesIO()
    np.save(stream, image, allow_pickle=False)
    return stream.getvalue()


def _parameters(value: dict[str, Any]) -> dict[str, Any]:
    found = value.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise bad_request(f"parameters must be an object, got {found!r:.60}")
    return found or {}


def _is_text(value: object) -> bool:
    """Whether it is text that UTF-8 can encode, and so an answer can repeat."""
    return isinstance(value, str) and not any("\ud800" <= sign <= "\udfff" for sign in value)
