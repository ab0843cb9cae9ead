"""Bodies of requests to a service: forms, JSON, and tensors of the Open Inference Protocol.

An input is a line and a body. The line is the header Content-Type, or the length of the JSON in
the binary protocol.
"""

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from splitattn.errors import InputError
from splitattn.images.samples import sample_photographs

_MOST = 4  # limit of images in a request


def body_seeds() -> list[bytes]:
    photograph = sample_photographs()[0].read_bytes()[:300]
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n'
    form = (
        part + b"Content-Type: image/jpeg\r\n\r\n" + photograph + b"\r\n" + part + b"\r\nx\r\n--b--"
    )
    elements = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [2]}
    binary = {"inputs": [{**tensor, "parameters": {"binary_data_size": len(elements)}}]}
    head = json.dumps(binary).encode()
    pixels = {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, 1, 2, 3],
        "data": [0, 1, 2, 3, 4, 5],
    }
    outputs = [{"name": "labels", "parameters": {"binary_data": True}}]
    tensors = [
        {"id": "1", "inputs": [{**tensor, "data": ["AAAA", "AA=="]}], "outputs": outputs},
        {"inputs": [pixels], "parameters": {"binary_data_output": True}},
    ]
    return [
        b"image/jpeg\n" + photograph,
        b"multipart/form-data; boundary=b\n" + form,
        b'application/json\n{"image": "AAAA"}',
        b'application/json\n{"images": ["AAAA", "data:image/png;base64,AA==", "http://a/"]}',
        str(len(head)).encode() + b"\n" + head + elements,
        *(b"none\n" + json.dumps(each).encode() for each in tensors),
    ]


def read_body(content: bytes, _: Path) -> None:
    """Read a body as images and by the protocol; refusals become an `InputError`."""
    from splitattn.serving.bodies import check_media_type, read_images
    from splitattn.serving.inference_protocol import InferenceProtocol
    from splitattn.serving.request_errors import RequestError

    first, _, body = content.partition(b"\n")
    header = first.decode("latin-1")
    outputs = {"probabilities": ("FP32", [-1, 6]), "labels": ("BYTES", [-1])}
    served = SimpleNamespace(model="small", outputs=outputs)
    settings = SimpleNamespace(max_images=_MOST)
    protocol: Any = InferenceProtocol(SimpleNamespace(served=served, settings=settings))  # type: ignore[arg-type]
    refused: list[str] = []
    try:
        protocol._read(body, None if header == "none" else header)
    except RequestError as error:
        refused.append(error.message)
    try:
        check_media_type(header)
        sent = read_images(body, header, _MOST)
        assert 1 <= len(sent.images) <= _MOST
    except RequestError as error:
        refused.append(error.message)
    if len(refused) == 2:
        raise InputError("; ".join(refused))
