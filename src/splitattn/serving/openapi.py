"""The description of a service's routes, with examples: OpenAPI 3.1."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from splitattn.serving.service import Service

_IMAGE = {
    "image/*": {"schema": {"type": "string", "format": "binary"}},
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {
                "file": {"type": "array", "items": {"type": "string", "format": "binary"}}
            },
        }
    },
    "application/json": {
        "schema": {
            "type": "object",
            "properties": {
                "image": {"type": "string", "contentEncoding": "base64"},
                "images": {
                    "type": "array",
                    "items": {"type": "string", "contentEncoding": "base64"},
                },
            },
        },
        "example": {"images": ["/9j/4AAQSkZJRg...", "iVBORw0KGgo..."]},
    },
}
_FAULTS = {
    "400": "the request is damaged",
    "401": "the key is missing or wrong",
    "408": "the body came too slowly",
    "413": "the request is too large",
    "415": "images cannot be sent as this type",
    "422": "a parameter or an image cannot be used",
    "429": "the queue is full; Retry-After says when to come again",
    "503": "the service is loading or stopping",
    "504": "the deadline has passed",
}
_ERROR = {"status": 422, "code": "bad_image", "message": "b.jpg: expected an image"}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "classification": {
        "predictions": [{"label": "espresso", "index": 967, "probability": 0.93}],
    },
    "detection": {
        "size": {"width": 640, "height": 480},
        "objects": [{"label": "cell", "index": 0, "score": 0.9, "box": [10.0, 20.0, 60.0, 80.0]}],
    },
    "segmentation": {
        "size": {"width": 640, "height": 480},
        "classes": [{"label": "road", "index": 3, "share": 0.4}],
    },
}


def describe_service(service: Service) -> dict[str, Any]:
    """The whole description, ready for JSON."""
    own = service.served
    about = {"model": own.model, "weights": own.weights}
    one = {"name": "image", **_EXAMPLES[own.task]}
    answers = [{**one, "name": "a.jpg"}, {"name": "b.jpg", "error": _ERROR}]
    predict = _operation(
        "Predict images",
        "One image as the body gives one answer. A form or a list of images gives a list, in "
        "their order, in which an image that cannot be used has an `error`.",
        {
            "image": {**one, **about},
            "form or list": {"results": answers, **about},
        },
        own.parameters,
    )
    paths = {
        "/v1/predict": {"post": predict},
        f"/v2/models/{own.model}/infer": {"post": _infer(own.outputs)},
    }
    if own.explains:
        paths["/v1/explain"] = {
            "post": _operation(
                "Explain a label",
                "A heat map of a label. With `Accept: image/jpeg`, only the picture.",
                {
                    "image": {
                        "label": "espresso",
                        "method": "cam",
                        "grid": [7, 7],
                        "map": [[0.1, 2.5]],
                    }
                },
                {
                    "label": "a class by name or index, the most probable one by default",
                    "method": "auto, cam or layercam",
                },
            )
        }
        answered = paths["/v1/explain"]["post"]["responses"]["200"]["content"]
        answered["image/jpeg"] = {"schema": {"type": "string", "format": "binary"}}
    for path, summary in (
        ("/v1/model", "Model, classes, image size and engine"),
        ("/livez", "Whether the process runs"),
        ("/readyz", "Whether requests are taken"),
        ("/metrics", "Figures for Prometheus"),
        ("/v2", "Open Inference Protocol, version 2"),
    ):
        paths[path] = {"get": {"summary": summary, "responses": {"200": {"description": "OK"}}}}
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": f"splitattn {own.model}", "version": version("splitattn")},
        "paths": paths,
        "components": {"schemas": {"Error": _error_schema()}},
    }
    if service.settings.key is not None:
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"key": []}]
    return description


def _infer(outputs: Mapping[str, tuple[str, list[int]]]) -> dict[str, Any]:
    request = {
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["/9j/4AAQ..."]}]
    }
    tensors = [
        {"name": name, "datatype": datatype, "shape": [1, *shape[1:]], "data": []}
        for name, (datatype, shape) in outputs.items()
    ]
    return {
        "summary": "Predict images by the Open Inference Protocol, version 2",
        "requestBody": {"required": True, "content": {"application/json": {"example": request}}},
        "responses": {
            "200": {
                "description": "the answer",
                "content": {"application/json": {"example": {"outputs": tensors}}},
            },
            "default": {
                "description": "as for /v1/predict",
                "content": {"application/json": {"example": {"error": "the queue is full"}}},
            },
        },
    }


def _operation(
    summary: str, text: str, examples: dict[str, Any], parameters: Mapping[str, str]
) -> dict[str, Any]:
    fault = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "summary": summary,
        "description": text,
        "parameters": [
            {"name": name, "in": "query", "description": meaning, "schema": {"type": "string"}}
            for name, meaning in parameters.items()
        ],
        "requestBody": {"required": True, "content": _IMAGE},
        "responses": {
            "200": {
                "description": "the answer",
                "content": {
                    "application/json": {
                        "examples": {name: {"value": value} for name, value in examples.items()}
                    }
                },
            },
            **{
                status: {"description": meaning, "content": fault}
                for status, meaning in _FAULTS.items()
            },
        },
    }


def _error_schema() -> dict[str, Any]:
    text = {"type": "string"}
    return {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {"status": {"type": "integer"}, "code": text, "message": text},
            }
        },
        "example": {
            "error": {"status": 429, "code": "queue_full", "message": "128 images are waiting..."}
        },
    }
