"""Detectors and segmenters behind the interface of a service."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from splitattn.dense.detector import DetectedObject, Detector
from splitattn.dense.drawing import draw_boxes
from splitattn.dense.mask_drawing import draw_classes
from splitattn.dense.outlines import to_run_lengths
from splitattn.dense.segmenter import SegmentedImage, Segmenter
from splitattn.errors import one_line
from splitattn.images.decode import decode
from splitattn.images.encode import data_url
from splitattn.images.limits import Limits
from splitattn.serving.served import Options, Served, boolean, share

_DEFAULT_SCORE, _LEAST_SCORE = 0.3, 0.05


class ServedDetector(Served):
    task = "detection"
    most_of_a_batch = 1
    parameters = {  # noqa: RUF012
        "score": "objects with a lower one are left out, 0.3 by default",
        "draw": "true adds a JPEG with the boxes",
    }

    def __init__(self, model: Detector) -> None:
        super().__init__(model)
        self._detector, self.engine = model, model.engine

    def prepare(self, batch_sizes: Sequence[int]) -> None:
        del batch_sizes  # images of any size come one by one
        self._detector.predict(Image.new("RGB", (64, 64)))

    def load(self, content: bytes, limits: Limits, name: str) -> Image.Image:
        return decode(content, limits=limits, name=name)

    def compute(self, loaded: list[Image.Image]) -> Sequence[Any]:
        # Requests choose from these by their own score.
        return [self._detector.predict(image, score=_LEAST_SCORE) for image in loaded]

    def answer(
        self, loaded: Image.Image, result: list[DetectedObject], options: Options, name: str
    ) -> dict[str, Any]:
        del name
        objects = [each for each in result if each.score > options["score"]]
        found: dict[str, Any] = {
            "size": {"width": loaded.width, "height": loaded.height},
            "objects": [asdict(each) for each in objects],
        }
        if options["draw"]:
            captions = [f"{one_line(each.label)} {each.score:.0%}" for each in objects]
            boxes, labels = [each.box for each in objects], [each.index for each in objects]
            found["picture"] = data_url(draw_boxes(loaded, boxes, labels, captions))
        return found

    def options(self, query: Mapping[str, str]) -> Options:
        self.check(query)
        score = share(query, "score", _LEAST_SCORE) if "score" in query else _DEFAULT_SCORE
        return {"score": score, "draw": boolean(query, "draw")}


class ServedSegmenter(Served):
    task = "segmentation"
    most_of_a_batch = 1
    parameters = {  # noqa: RUF012
        "masks": "true adds the run lengths of each class, as COCO has them",
        "draw": "true adds a JPEG with the classes",
    }

    def __init__(self, model: Segmenter) -> None:
        super().__init__(model)
        self._segmenter, self.engine = model, str(model.engine)

    def prepare(self, batch_sizes: Sequence[int]) -> None:
        del batch_sizes  # as above
        self._segmenter.predict(Image.new("RGB", (64, 64)))

    def load(self, content: bytes, limits: Limits, name: str) -> Image.Image:
        return decode(content, limits=limits, name=name)

    def compute(self, loaded: list[Image.Image]) -> Sequence[Any]:
        return [self._segmenter.predict(image) for image in loaded]

    def answer(
        self, loaded: Image.Image, result: SegmentedImage, options: Options, name: str
    ) -> dict[str, Any]:
        del name
        classes = [asdict(each) for each in result.shares]
        if options["masks"]:
            for each in classes:
                each["mask"] = to_run_lengths(result.class_map == each["index"]).to_coco()
        found: dict[str, Any] = {
            "size": {"width": loaded.width, "height": loaded.height},
            "classes": classes,
        }
        if options["draw"]:
            found["picture"] = data_url(draw_classes(loaded, result.class_map, result.classes))
        return found

    def options(self, query: Mapping[str, str]) -> Options:
        self.check(query)
        return {"masks": boolean(query, "masks"), "draw": boolean(query, "draw")}


def served_dense(model: Detector | Segmenter) -> Served:
    """See `served`."""
    return ServedDetector(model) if isinstance(model, Detector) else ServedSegmenter(model)
