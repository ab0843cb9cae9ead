"""The answers of a service with small networks, through real sockets."""

import base64
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from splitattn.architectures import ARCHITECTURES
from splitattn.classifier import Classifier
from splitattn.dense.detector import DetectedObject, Detector
from splitattn.dense.outlines import to_run_lengths
from splitattn.dense.segmenter import Segmenter
from splitattn.engines import open_vino
from splitattn.images.encode import jpeg
from splitattn.images.limits import DEFAULT_LIMITS
from splitattn.images.samples import sample_photographs
from splitattn.serving.app import create_app
from splitattn.serving.served import served
from splitattn.serving.served_dense import ServedDetector
from splitattn.serving.settings import Settings
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.metadata import ModelMetadata
from tests.attacks.make import attacks
from tests.cli.networks import CLASSES, PREPROCESSING, write_weights
from tests.cli.networks import network as classes_network
from tests.dense.datasets import CLASSES as OBJECTS
from tests.dense.datasets import MASK_CLASSES
from tests.dense.runs import ARCHITECTURE, CHANNELS, mask_network, network

from .running import Running, running, until_ready

PHOTOGRAPHS = [path.read_bytes() for path in sample_photographs()]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    weights = write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")
    return Classifier(weights=weights, engine="onnxruntime")


@pytest.fixture(scope="module")
def own(classifier: Classifier) -> Iterator[Running]:
    with running(create_app(classifier, Settings(max_batch=4, max_images=8))) as service:
        until_ready(service)
        yield service


def post(own: Running, content: bytes, query: str = "", **headers: str) -> Any:
    response = own.client.post(
        f"/v1/predict?{query}", content=content, headers={"Content-Type": "image/jpeg", **headers}
    )
    assert response.status_code == 200, response.text
    return response.json()


def probabilities_of(answer: Any) -> Any:
    """The probabilities in order of index; the answer must have all classes."""
    ordered = sorted(answer["predictions"], key=lambda each: each["index"])
    return np.array([each["probability"] for each in ordered])


def probabilities(classifier: Classifier, content: bytes) -> Any:
    found = classifier.predict(content, topk=len(CLASSES))
    return probabilities_of({"predictions": [asdict(each) for each in found]})


def test_answers_are_those_of_predict(own: Running, classifier: Classifier) -> None:
    for photograph in PHOTOGRAPHS:
        answer = post(own, photograph, "topk=6")
        expected = classifier.predict(photograph, topk=6)
        assert [each["label"] for each in answer["predictions"]] == [p.label for p in expected]
        np.testing.assert_allclose(
            [each["probability"] for each in answer["predictions"]],
            [each.probability for each in expected],
            atol=1e-5,
        )
        assert (answer["model"], answer["weights"]) == (classifier.model, str(classifier.weights))
    by_curl = post(own, PHOTOGRAPHS[0], **{"Content-Type": "application/x-www-form-urlencoded"})
    assert by_curl == post(own, PHOTOGRAPHS[0])
    assert len(by_curl["predictions"]) == 5


def test_several_files_are_answered_in_their_order_each_for_itself(
    own: Running, classifier: Classifier
) -> None:
    expected = [probabilities(classifier, each) for each in PHOTOGRAPHS[:2]]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3, (
        "the answers must differ, or their order cannot be checked"
    )
    names = ["one.jpg", "bröken.jpg", "../two.jpg"]
    contents = [PHOTOGRAPHS[0], b"no image", PHOTOGRAPHS[1]]
    files = [("file", each) for each in zip(names, contents, strict=True)]
    form = own.client.post("/v1/predict?topk=6", files=files)
    encoded = [base64.b64encode(each).decode() for each in contents]
    encoded[2] = f"data:image/jpeg;base64,{encoded[2]}"
    listed = own.client.post("/v1/predict?topk=6", json={"images": encoded})
    assert form.status_code == listed.status_code == 200
    for response in (form, listed):
        first, broken, last = response.json()["results"]
        np.testing.assert_allclose(probabilities_of(first), expected[0], atol=1e-5)
        np.testing.assert_allclose(probabilities_of(last), expected[1], atol=1e-5)
        assert broken["error"]["code"] == "bad_image"
        assert "\n" not in broken["error"]["message"]
    assert [each["name"] for each in form.json()["results"]] == names
    single = own.client.post("/v1/predict", json={"image": encoded[0]})
    assert single.json()["predictions"] == post(own, PHOTOGRAPHS[0])["predictions"]


def test_batches_have_the_probabilities_of_single_images(classifier: Classifier) -> None:
    contents = [*PHOTOGRAPHS[:4], *PHOTOGRAPHS[:4][::-1]]
    # The wait fills batches even if decoding is slow.
    with running(create_app(classifier, Settings(max_batch=4, max_wait=5.0))) as own:
        until_ready(own)
        files = [("file", (str(i), content)) for i, content in enumerate(contents)]
        answers = own.client.post("/v1/predict?topk=6", files=files).json()["results"]
        for answer, content in zip(answers, contents, strict=True):
            expected = probabilities(classifier, content)
            np.testing.assert_allclose(probabilities_of(answer), expected, atol=1e-5)
        assert own.metric("splitattn_batch_images_count") == 2
        assert own.metric("splitattn_batch_images_sum") == 8


FAULTS: list[tuple[str, str, bytes, str, int, str]] = [
    ("POST", "/v1/predict", b"no image", "image/png", 422, "expected an image"),
    ("POST", "/v1/predict", b"", "image/png", 400, "must hold an image"),
    (
        "POST",
        "/v1/predict",
        PHOTOGRAPHS[0].translate(None, b"\r\n\0"),  # as `curl -d @photo.jpg` sends it
        "application/x-www-form-urlencoded",
        400,
        "--data-binary @photo.jpg",
    ),
    ("POST", "/v1/predict", b"x", "text/html", 415, "Content-Type must be"),
    ("POST", "/v1/predict", b"{", "application/json", 400, "must be JSON"),
    ("POST", "/v1/predict", b"[" * 100_000, "application/json", 400, "must be JSON"),
    ("POST", "/v1/predict", b"[]", "application/json", 400, "must be a JSON object"),
    ("POST", "/v1/predict", b"{}", "application/json", 400, "must hold an image"),
    ("POST", "/v1/predict", b'{"url": "x"}', "application/json", 400, "image or images"),
    ("POST", "/v1/predict", b'{"image": 3}', "application/json", 400, "must be base64 text"),
    ("POST", "/v1/predict", b'{"image": "/9k"}', "application/json", 400, "text that is not"),
    ("POST", "/v1/predict", b'{"image": "a b="}', "application/json", 400, "text that is not"),
    ("POST", "/v1/predict", b'{"image": "http://10.0.0.1/"}', "application/json", 400, "a URL"),
    ("POST", "/v1/predict", b'{"image": "file:///etc/passwd"}', "application/json", 400, "a URL"),
    ("POST", "/v1/predict", b"x", "multipart/form-data", 400, "boundary"),
    ("POST", "/v1/predict", b"x", "multipart/form-data; boundary=b", 400, "damaged"),
    ("POST", "/v1/predict?topk=0", b"x", "image/png", 422, "topk must be at least 1"),
    ("POST", "/v1/predict?topk=many", b"x", "image/png", 422, "topk must be a whole number"),
    (
        "POST",
        "/v1/predict?top_k=1",
        b"x",
        "image/png",
        422,
        "parameters here are topk, threshold, explain",
    ),
    ("POST", "/v1/predict?explain=x", b"x", "image/png", 422, "explain must be true or false"),
    ("POST", "/v1/explain?method=rise", b"x", "image/png", 422, "method must be"),
    ("POST", "/v1/explain", b"no image", "image/png", 422, "expected an image"),
    ("GET", "/v1/predict", b"", "", 405, "does not take GET; use POST"),
    ("GET", "/v1/nothing", b"", "", 404, "there is no path"),
    ("GET", "/../../etc/passwd", b"", "", 404, "there is no path"),
]


@pytest.mark.parametrize(("method", "path", "content", "kind", "status", "message"), FAULTS)
def test_all_errors_have_one_shape(
    own: Running, method: str, path: str, content: bytes, kind: str, status: int, message: str
) -> None:
    response = own.client.request(method, path, content=content, headers={"Content-Type": kind})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["status"] == status
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_too_many_images_are_refused(own: Running) -> None:
    encoded = {"images": ["AAAA"] * 9}
    assert own.client.post("/v1/predict", json=encoded).status_code == 413
    files = [("file", ("a.jpg", b"a"))] * 9
    assert own.client.post("/v1/predict", files=files).status_code == 413


def test_hostile_files_are_errors_of_their_own(own: Running) -> None:
    hostile = [each for each in attacks() if each.path.startswith("images/")]
    assert len(hostile) > 40
    for attack in hostile:
        response = own.client.post("/v1/predict", content=attack.content)
        assert response.status_code in ((200, 422) if attack.content else (400,)), attack.path
    assert post(own, PHOTOGRAPHS[0])["predictions"]


def test_explanations_come_as_json_and_as_a_picture(own: Running, classifier: Classifier) -> None:
    found = own.client.post("/v1/explain?label=mug", content=PHOTOGRAPHS[2]).json()
    expected = classifier.explain(PHOTOGRAPHS[2], "mug")
    assert (found["label"], found["method"]) == ("mug", expected.method)
    np.testing.assert_allclose(found["map"], expected.map, atol=1e-4)
    accept = {"Accept": "image/jpeg"}
    picture = own.client.post("/v1/explain", content=PHOTOGRAPHS[2], headers=accept)
    assert picture.headers["Content-Type"] == "image/jpeg"
    with Image.open(io.BytesIO(picture.content)) as image:
        assert image.width == 640
    both = post(own, PHOTOGRAPHS[2], "explain=true&topk=1")
    assert both["explanation"]["label"] == both["predictions"][0]["label"]
    assert both["explanation"]["picture"].startswith("data:image/jpeg;base64,")
    wrong = own.client.post("/v1/explain?label=mugg", content=PHOTOGRAPHS[2])
    assert wrong.status_code == 422
    assert "did you mean 'mug'?" in wrong.json()["error"]["message"]


def test_the_service_describes_its_model(own: Running, classifier: Classifier) -> None:
    about = own.client.get("/v1/model").json()
    assert (about["task"], about["classes"]) == ("classification", list(CLASSES))
    assert about["size"] == PREPROCESSING.size
    assert about["engine"] == classifier.engine.name
    described = own.client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    answers = described["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]
    assert [*answers["application/json"]["examples"]] == ["image", "form or list"]
    explained = described["paths"]["/v1/explain"]["post"]["responses"]["200"]["content"]
    assert "image/jpeg" in explained
    assert INFER in described["paths"]
    for path, operations in described["paths"].items():
        for verb in operations:
            assert own.client.request(verb, path, content=b"x").status_code not in (404, 405)
    post(own, PHOTOGRAPHS[0])
    assert own.metric('splitattn_requests_total{path="/v1/predict",status="200"}') >= 1
    answered, failed = (
        f'splitattn_images_total{{result="{result}"}}' for result in ("answered", "error")
    )
    before = own.metric(answered)
    own.client.post(INFER, json={"inputs": [IMAGE]})
    own.client.post("/v1/explain", content=PHOTOGRAPHS[0])
    assert own.metric(answered) == before + 2
    assert own.metric('splitattn_stage_seconds_count{stage="explain"}') >= 1
    own.client.post("/v1/predict", json={"images": ["?", "AAAA"]})
    assert own.metric(failed) >= 2
    assert own.metric("splitattn_queue_images") == 0
    assert own.client.get("/metrics").headers["Content-Type"].startswith("text/plain")


def test_a_request_keeps_its_id_and_a_hostile_one_does_not(own: Running) -> None:
    asked = own.client.get("/livez", headers={"X-Request-ID": "abc-123"})
    assert asked.headers["X-Request-ID"] == "abc-123"
    hostile = own.client.get("/livez", headers={"X-Request-ID": 'a" b'})
    assert len(hostile.headers["X-Request-ID"]) == 32


def test_the_protocol_takes_files_and_pixels_in_json(own: Running, classifier: Classifier) -> None:
    name = own.client.get("/v2/models/resnest14").json()
    assert name["outputs"][0] == {
        "name": "probabilities",
        "datatype": "FP32",
        "shape": [-1, len(CLASSES)],
    }
    assert own.client.get("/v2/health/ready").json() == {"ready": True}
    encoded = [base64.b64encode(each).decode() for each in PHOTOGRAPHS[:2]]
    inputs = [{"name": "image", "datatype": "BYTES", "shape": [2], "data": encoded}]
    files = own.client.post("/v2/models/resnest14/infer", json={"id": "7", "inputs": inputs})
    probabilities, labels = files.json()["outputs"]
    best = [each[0] for each in classifier.predict(PHOTOGRAPHS[:2])]
    assert labels["data"] == [each.label for each in best]
    assert files.json()["id"] == "7"
    found = np.reshape(probabilities["data"], probabilities["shape"])
    np.testing.assert_allclose(found.max(1), [each.probability for each in best], atol=1e-5)

    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    inputs = [
        {"name": "image", "datatype": "UINT8", "shape": [2, 40, 50, 3], "data": pixels.tolist()}
    ]
    arrays = own.client.post("/v2/models/resnest14/infer", json={"inputs": inputs})
    expected = [each[0].label for each in classifier.predict([*pixels])]
    assert arrays.json()["outputs"][1]["data"] == expected


def test_the_protocol_takes_and_gives_binary_tensors(own: Running, classifier: Classifier) -> None:
    content = b"".join(struct.pack("<I", len(each)) + each for each in PHOTOGRAPHS[:3])
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "BYTES",
                    "shape": [3],
                    "parameters": {"binary_data_size": len(content)},
                }
            ],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = own.client.post(
        "/v2/models/resnest14/infer", content=head + content, headers=headers
    )
    length = int(response.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(response.content[:length])["outputs"]
    found = np.frombuffer(response.content[length:], np.float32).reshape(output["shape"])
    expected = classifier.predict(PHOTOGRAPHS[:3], topk=1)
    np.testing.assert_allclose(found.max(1), [each[0].probability for each in expected], atol=1e-5)


@pytest.mark.parametrize(
    "tensor",
    [
        {},
        {"datatype": "FP32", "shape": [1], "data": []},
        {"datatype": "BYTES", "shape": [2], "data": ["AAAA"]},
        {"datatype": "BYTES", "shape": [1], "data": "AAAA"},
        {"datatype": "BYTES", "shape": [-1], "data": ["AAAA"]},
        {"datatype": "BYTES", "shape": [99], "data": ["AAAA"] * 99},
        {"datatype": "BYTES", "shape": [1], "data": [7]},
        {"datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [1, 2]},
        {"datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [[1], [1, 2]]},
        {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 300]},
        {"datatype": "UINT8", "shape": [1, 10**9, 10**9, 3], "data": [1]},
        {"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}},
        {"datatype": "BYTES", "shape": [1], "parameters": [1], "data": ["AAAA"]},
        {"datatype": "UINT8", "shape": [1, 10**4000, 10**4000, 3], "data": [1]},
        {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0.5, 0.5, 0.5]},
        {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, -1]},
        {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": ["1", "2", "3"]},
        {"datatype": "UINT8", "shape": [1, 1, 2, 3], "data": [[1, 2], [3, 4], [5, 6]]},
        {"datatype": "UINT8", "shape": [1, 0, 2, 3], "data": []},
        {"datatype": "UINT8", "shape": [1, 1, 1, 3]},
    ],
    ids=lambda tensor: str(tensor)[:60],
)
def test_the_protocol_refuses_in_its_own_shape(own: Running, tensor: dict[str, Any]) -> None:
    check_refused(own, {"inputs": [tensor]})


IMAGE = {"datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}


@pytest.mark.parametrize(
    "fault",
    [
        {"outputs": [{"name": "labels", "parameters": [1]}]},
        {"outputs": [{"name": "logits"}]},
        {"outputs": [1]},
        {"parameters": "x"},
        {"id": "\ud800"},
        {"id": 7},
    ],
    ids=str,
)
def test_the_protocol_refuses_wrong_fields_around_a_tensor(
    own: Running, fault: dict[str, Any]
) -> None:
    assert own.client.post(INFER, json={"inputs": [IMAGE]}).status_code == 200
    check_refused(own, {"inputs": [IMAGE], **fault})


def test_the_protocol_refuses_a_header_of_many_digits(own: Running) -> None:
    headers = {"Inference-Header-Content-Length": "9" * 5000}
    refused = own.client.post(INFER, json={"inputs": [IMAGE]}, headers=headers)
    assert refused.status_code == 400


INFER = "/v2/models/resnest14/infer"


def check_refused(own: Running, request: dict[str, Any]) -> None:
    content = json.dumps(request).encode()  # escapes what the client's encoder would refuse
    response = own.client.post(INFER, content=content)
    assert response.status_code in (400, 413, 422), response.text
    assert isinstance(response.json()["error"], str)


def test_tritons_client_works_with_the_service(own: Running, classifier: Classifier) -> None:
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{own.port}")
    assert client.is_server_ready()
    assert client.is_model_ready("resnest14")
    tensor = triton.InferInput("image", [3], "BYTES")
    tensor.set_data_from_numpy(np.array(PHOTOGRAPHS[:3], object))
    found = client.infer("resnest14", [tensor])
    expected = classifier.predict(PHOTOGRAPHS[:3], topk=1)
    assert [each.decode() for each in found.as_numpy("labels")] == [e[0].label for e in expected]
    highest = found.as_numpy("probabilities").max(1)
    np.testing.assert_allclose(highest, [each[0].probability for each in expected], atol=1e-5)
    client.close()


def test_a_service_without_explanations_refuses_to_explain(classifier: Classifier) -> None:
    with running(create_app(classifier, Settings(explain=False))) as own:
        until_ready(own)
        refused = own.client.post("/v1/predict?explain=true", content=PHOTOGRAPHS[0])
        assert refused.status_code == 422
        assert "parameters here are topk, threshold; got 'explain'" in refused.text
        refused = own.client.post("/v1/explain", content=PHOTOGRAPHS[0])
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
        assert "a classifier, served without --no-explain" in refused.text
        about = own.client.get("/v1/model").json()
        assert (about["explains"], [*about["parameters"]]) == (False, ["topk", "threshold"])
        assert "/v1/explain" not in own.client.get("/openapi.json").json()["paths"]


def test_masks_of_objects_are_coco_s_as_predict_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    weights = write_dense(tmp_path / "dense.safetensors", "detection")
    served = ServedDetector(Detector(weights, engine="onnxruntime"))
    mask = to_run_lengths(np.eye(32, dtype=bool))
    found = DetectedObject(label="a", index=0, score=0.9, box=(0.0, 0.0, 32.0, 32.0), mask=mask)
    image = jpeg(Image.new("RGB", (32, 32), "white"))
    options = served.options({"draw": "true"})
    loaded = served.load(image, DEFAULT_LIMITS, "a", options)
    answer = json.loads(json.dumps(served.answer(loaded, [found], options, "a")))
    assert answer["objects"] == [
        {"label": "a", "index": 0, "score": 0.9, "box": [0, 0, 32, 32], "mask": mask.to_coco()}
    ]


def test_an_image_that_may_have_several_classes_may_have_none(tmp_path: Path) -> None:
    metadata = ModelMetadata(
        model="resnest14", classes=CLASSES, preprocessing=PREPROCESSING, activation="sigmoid"
    )
    write_checkpoint(tmp_path / "several.safetensors", classes_network().state_dict(), metadata)
    model = Classifier(weights=tmp_path / "several.safetensors", engine="onnxruntime")
    with running(create_app(model)) as own:
        until_ready(own)
        expected = model.predict(PHOTOGRAPHS[0], threshold=0.3)
        assert len(post(own, PHOTOGRAPHS[0], "threshold=0.3")["predictions"]) == len(expected) > 0
        none = post(own, PHOTOGRAPHS[0], "threshold=1&explain=true")
        assert none["predictions"] == []
        assert none["explanation"]["label"] in CLASSES


def write_dense(path: Path, task: str) -> Path:
    """Write untrained weights that find something in every image."""
    detects = task == "detection"
    model = network() if detects else mask_network()
    state = model.state_dict()
    for key, value in state.items():
        if key.endswith("cls_logits.bias"):
            value.fill_(1.0)
    metadata = ModelMetadata(
        model="small",
        task=task,
        classes=OBJECTS if detects else MASK_CLASSES,
        preprocessing=PREPROCESSING,
        head={
            "name": "fcos" if detects else "fpn",
            "channels": CHANNELS,
            "short_side": 64,
            "long_side": 96,
        },
    )
    write_checkpoint(path, state, metadata)
    return path


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_size_that_was_prepared_is_not_compiled_again(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    weights = write_dense(tmp_path / "dense.safetensors", task)
    open_model = Detector if task == "detection" else Segmenter
    own = served(open_model(weights, engine="openvino"))
    own.prepare([1])
    monkeypatch.setattr(open_vino, "_compile", None)
    image = own.load(PHOTOGRAPHS[0], DEFAULT_LIMITS, "a", {})
    for _ in range(3):
        assert len(own.compute([image])) == 1


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_large_photographs_are_decoded_at_the_scale_that_the_network_needs(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    weights = write_dense(tmp_path / "dense.safetensors", task)
    open_model = Detector if task == "detection" else Segmenter
    model: Any = open_model(weights, engine="onnxruntime")
    own = served(model)
    photograph = jpeg(Image.open(sample_photographs()[2]).resize((1203, 901)))
    for query in ({}, {"draw": "true"}):
        options = own.options(query)
        loaded = own.load(photograph, DEFAULT_LIMITS, "a", options)
        # Reduced by 4. By 8, the shorter side would be less than 128, twice that of the network.
        assert loaded.seen.image.size == (301, 226)
        (result,) = own.compute([loaded])
        answer = own.answer(loaded, result, options, "a")
        assert answer["size"] == {"width": 1203, "height": 901}
        if "draw" in query:
            width, _ = Image.open(
                io.BytesIO(base64.b64decode(answer["picture"].partition(",")[2]))
            ).size
            assert width == 1203
        # The answer equals that of `predict`.
        predicted = model.predict(photograph)
        if isinstance(model, Detector):
            assert [each["box"] for each in answer["objects"]] == [[*e.box] for e in predicted]
            assert max(each.box[2] for each in predicted) > 301
        else:
            assert [e["share"] for e in answer["classes"]] == [e.share for e in predicted.shares]


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_detectors_and_segmenters_are_served(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    weights = write_dense(tmp_path / "dense.safetensors", task)
    model: Detector | Segmenter = (
        Detector(weights, engine="onnxruntime")
        if task == "detection"
        else Segmenter(weights, engine="onnxruntime")
    )
    with running(create_app(model)) as own:
        until_ready(own)
        answer = post(own, PHOTOGRAPHS[0], "draw=true")
        image = Image.open(io.BytesIO(PHOTOGRAPHS[0]))
        assert answer["size"] == {"width": image.width, "height": image.height}
        assert answer["picture"].startswith("data:image/jpeg;base64,")
        if isinstance(model, Detector):
            expected = model.predict(PHOTOGRAPHS[0])
            assert len(expected) > 3
            assert [each["box"] for each in answer["objects"]] == [[*each.box] for each in expected]
        else:
            shares = [each.share for each in model.predict(PHOTOGRAPHS[0]).shares]
            assert [each["share"] for each in answer["classes"]] == shares
            assert "counts" in post(own, PHOTOGRAPHS[0], "masks=true")["classes"][0]["mask"]
        refused = own.client.post("/v1/explain", content=PHOTOGRAPHS[0])
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")
        assert refused.json()["error"]["message"].endswith(f" for {task}")
        encoded = base64.b64encode(PHOTOGRAPHS[0]).decode()
        inputs = [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]}]
        inferred = own.client.post("/v2/models/small/infer", json={"inputs": inputs})
        (text,) = inferred.json()["outputs"][0]["data"]
        assert json.loads(text)["size"] == answer["size"]
