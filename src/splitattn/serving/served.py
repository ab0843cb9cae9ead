"""What a service serves: a classifier, a detector or a segmenter, behind one interface."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from splitattn.classifier import Classifier
from splitattn.engines.engine import NOT_FINITE
from splitattn.engines.table import file_engine
from splitattn.errors import ImageError, InputError
from splitattn.explanation import Explanation
from splitattn.images.encode import data_url
from splitattn.images.limits import Limits
from splitattn.images.preprocess import Pixels
from splitattn.serving.request_errors import bad_value

if TYPE_CHECKING:
    from splitattn.dense.detector import Detector
    from splitattn.dense.segmenter import Segmenter

    Model = Classifier | Detector | Segmenter

Options = Mapping[str, Any]

_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


class Served(ABC):
    """A model, as the service calls it.

    Attributes:
        task: "classification", "detection" or "segmentation".
        model, weights, engine: what answers, for people.
        classes: names by index.
        most_of_a_batch: images that `compute` gains from taking at a time; None is any number.
        parameters: of a request, with what each means.
        explains: whether it can say what a label rests on, soon enough for a request.
    """

    task: str
    engine: str
    most_of_a_batch: int | None = None
    parameters: Mapping[str, str]
    explains: bool = False

    def __init__(self, model: "Model") -> None:
        self.model, self.weights = model.model, str(model.weights)
        self.classes = tuple(model.classes)

    @abstractmethod
    def prepare(self, batch_sizes: Sequence[int]) -> None:
        """Compile what batches of these sizes need."""

    @abstractmethod
    def load(self, content: bytes, limits: Limits, name: str) -> Any:
        """An encoded image, decoded; raises `ImageError`."""

    @abstractmethod
    def compute(self, loaded: list[Any]) -> Sequence[Any]:
        """A result for each of one or more loaded images."""

    @abstractmethod
    def answer(self, loaded: Any, result: Any, options: Options, name: str) -> dict[str, Any]:
        """A result as JSON; raises `ImageError` where it is none."""

    @abstractmethod
    def options(self, query: Mapping[str, str]) -> Options:
        """The parameters of a request; raises `RequestError`."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of images as arrays; -1 is any."""
        return (-1, -1, 3)

    def check(self, query: Mapping[str, str], *others: str) -> None:
        """Refuse parameters that mean nothing here."""
        known = (*self.parameters, *others)
        for name in query:
            if name not in known:
                takes = ", ".join(known) or "none"
                raise bad_value(f"parameters here are {takes}; got {name!r:.60}")


class ServedClassifier(Served):
    task = "classification"
    parameters = {  # noqa: RUF012
        "topk": "how many classes to name, 5 by default",
        "threshold": "classes with a lower probability are left out, if an image may have several",
        "explain": "true adds what the best label rests on",
    }

    def __init__(self, model: Classifier) -> None:
        super().__init__(model)
        self.classifier, self.engine = model, model.engine.name
        self.explains = _gives_maps(model)

    def prepare(self, batch_sizes: Sequence[int]) -> None:
        self.classifier.engine.fix_batches(batch_sizes, self.classifier.preprocessing)

    def load(self, content: bytes, limits: Limits, name: str) -> Pixels:
        return self.classifier.load(content, limits=limits, name=name)

    def compute(self, loaded: list[Pixels]) -> Sequence[Any]:
        return [*self.classifier.probabilities(np.stack(loaded))]

    def answer(self, loaded: Pixels, result: Any, options: Options, name: str) -> dict[str, Any]:
        del loaded
        if not np.isfinite(result).all():
            raise ImageError(f"{name}: {NOT_FINITE}")
        best = self.classifier.named(result, options["most"], options["least"])
        return {"predictions": [asdict(each) for each in best]}

    def options(self, query: Mapping[str, str]) -> Options:
        self.check(query)
        topk = integer(query, "topk") if "topk" in query else None
        threshold = share(query, "threshold") if "threshold" in query else None
        try:
            most, least = self.classifier.choice(topk, threshold)
        except InputError as error:
            raise bad_value(str(error)) from error
        return {"most": most, "least": least, "explain": boolean(query, "explain")}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (-1, -1, self.classifier.preprocessing.channels)

    def explain(
        self, content: bytes, label: str | int | None, method: str, name: str
    ) -> Explanation:
        """See `Classifier.explain`; raises `RequestError` where the request is wrong."""
        try:
            return self.classifier.explain(content, label, method, name=name)
        except ImageError:
            raise
        except InputError as error:
            raise bad_value(str(error)) from error


def _gives_maps(model: Classifier) -> bool:
    """Whether a forward pass or two explain a label: not if only an exported file has logits."""
    if file_engine(model.weights) is None:
        return True
    size, channels = model.preprocessing.size, model.preprocessing.channels
    blank = np.zeros((model.engine.batch or 1, channels, size, size), np.float32)
    return len(model.engine.outputs(blank)) > 1


def served(model: "Model") -> Served:
    """The model behind the interface of a service."""
    if isinstance(model, Classifier):
        return ServedClassifier(model)
    from splitattn.serving.served_dense import served_dense  # a classifier starts without it

    return served_dense(model)


def explanation_as_json(found: Explanation) -> dict[str, Any]:
    """An explanation with its map as numbers and its picture as a data URL."""
    return {
        "label": found.label,
        "index": found.index,
        "probability": found.probability,
        "logit": found.logit,
        "bias": found.bias,
        "method": found.method,
        "meaning": found.meaning,
        "grid": list(found.grid),
        "highest": found.highest,
        "map": [[round(value, 6) for value in row] for row in found.map.tolist()],
        "box": list(found.box),
        "size": {"width": found.image.width, "height": found.image.height},
        "shares": [{"block": each.block, "shares": list(each.shares)} for each in found.shares],
        "picture": data_url(found.overlay()),
    }


def integer(query: Mapping[str, str], name: str) -> int:
    text = query[name]
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise bad_value(f"{name} must be a whole number, got {text!r:.60}")
    return int(text)


def share(query: Mapping[str, str], name: str, least: float = 0.0) -> float:
    try:
        value = float(query[name])
    except ValueError:
        value = -1.0
    if not least <= value <= 1:
        raise bad_value(f"{name} must be {least:g} to 1, got {query[name]!r:.60}")
    return value


def boolean(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "false").lower()
    if text not in (*_TRUE, *_FALSE):
        raise bad_value(f"{name} must be true or false, got {text!r:.60}")
    return text in _TRUE
