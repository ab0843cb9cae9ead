"""Detectors and segmenters behind the interface of a service."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from splitattn.dense.as_json import classes_as_json, object_as_json
from splitattn.dense.detector import DetectedObject, Detector
from splitattn.dense.drawing import draw_objects
from splitattn.dense.mask_drawing import draw_classes
from splitattn.dense.segmenter import SegmentedImage, Segmenter
from splitattn.images.decode import Reduced, decode
from splitattn.images.encode import data_url
from splitattn.images.limits import Limits
from splitattn.serving.served import Options, Served, boolean, check_parameters, share

_DEFAULT_SCORE, _LEAST_SCORE = 0.3, 0.05


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    """What the network sees, and the whole image where a drawing is asked for."""

    seen: Reduced
    shown: Image.Image | None = None

    @property
    def size(self) -> dict[str, int]:
        width, height = self.seen.whole
        return {"width": width, "height": height}


def _load(
    model: Detector | Segmenter, content: bytes, limits: Limits, name: str, options: Options
) -> _Loaded:
    seen = model.load(content, limits=limits, name=name)
    drawn = options.get("draw")
    return _Loaded(seen=seen, shown=decode(content, limits=limits, name=name) if drawn else None)


class ServedDetector(Served):
    task = "detection"
    most_of_a_batch = 1
    parameters = {  # noqa: RUF012
        "score": "objects with a lower one are left out, 0.3 by default",
        "draw": "true adds a JPEG with the objects",
    }
    slow = ("draw",)

    def __init__(self, model: Detector) -> None:
        super().__init__(model)
        self._detector, self.engine = model, model.engine

    def prepare(self, batch_sizes: Sequence[int]) -> None:
        del batch_sizes  # images of any size come one by one
        self._detector.fix_shapes()
        self._detector.predict(Image.new("RGB", (64, 64)))

    def load(self, content: bytes, limits: Limits, name: str, options: Options) -> _Loaded:
        return _load(self._detector, content, limits, name, options)

    def compute(self, loaded: list[_Loaded]) -> Sequence[Any]:
        # From these, `answer` selects by the request's own score.
        return [self._detector.objects(each.seen, _LEAST_SCORE) for each in loaded]

    def answer(
        self, loaded: _Loaded, result: list[DetectedObject], options: Options, name: str
    ) -> dict[str, Any]:
        del name
        objects = [each for each in result if each.score > options["score"]]
        found: dict[str, Any] = {
            "size": loaded.size,
            "objects": [object_as_json(each) for each in objects],
        }
        if loaded.shown:
            found["picture"] = data_url(draw_objects(loaded.shown, objects))
        return found

    def options(self, query: Mapping[str, str]) -> Options:
        check_parameters(query, self.parameters)
        score = share(query, "score", _LEAST_SCORE) if "score" in query else _DEFAULT_SCORE
        return {"score": score, "draw": boolean(query, "draw")}


class ServedSegmenter(Served):
    task = "segmentation"
    most_of_a_batch = 1
    parameters = {  # noqa: RUF012
        "masks": "true adds the run lengths of each class, as COCO has them",
        "draw": "true adds a JPEG with the classes",
    }
    slow = ("masks", "draw")

    def __init__(self, model: Segmenter) -> None:
        super().__init__(model)
        self._segmenter, self.engine = model, str(model.engine)

    def prepare(self, batch_sizes: Sequence[int]) -> None:
        del batch_sizes  # as above
        self._segmenter.fix_shapes()
        self._segmenter.predict(Image.new("RGB", (64, 64)))

    def load(self, content: bytes, limits: Limits, name: str, options: Options) -> _Loaded:
        return _load(self._segmenter, content, limits, name, options)

    def compute(self, loaded: list[_Loaded]) -> Sequence[Any]:
        return [self._segmenter.answer(each.seen) for each in loaded]

    def answer(
        self, loaded: _Loaded, result: SegmentedImage, options: Options, name: str
    ) -> dict[str, Any]:
        del name
        found: dict[str, Any] = {
            "size": loaded.size,
            "classes": classes_as_json(result, masks=options["masks"]),
        }
        if loaded.shown:
            found["picture"] = data_url(
                draw_classes(loaded.shown, result.class_map, result.classes)
            )
        return found

    def options(self, query: Mapping[str, str]) -> Options:
        check_parameters(query, self.parameters)
        return {"masks": boolean(query, "masks"), "draw": boolean(query, "draw")}


def served_dense(model: Detector | Segmenter) -> Served:
    """See `served`."""
    return ServedDetector(model) if isinstance(model, Detector) else ServedSegmenter(model)
