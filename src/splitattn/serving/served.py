"""The models that a service serves, behind one interface; and classifiers."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from splitattn.classifier import Classifier, Prediction
from splitattn.engines.engine import NOT_FINITE
from splitattn.engines.table import file_engine
from splitattn.errors import ImageError, InputError
from splitattn.explanation.explainer import LoadedImage
from splitattn.explanation.explanation import Explanation
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
        model, weights, engine: names for people.
        classes: names by index.
        size: height and width of the network's images; None is any.
        most_of_a_batch: the largest batch that makes `compute` faster; None is no limit.
        batches_at_once: the most calls of `compute` at the same time that make it faster.
        parameters: of a request, with what each means.
        slow: parameters that make `answer` take long if they are true.
        outputs: datatype and shape of each tensor, as the Open Inference Protocol has them.
        explains: whether `explain` works, and is fast enough for a request.
    """

    task: str
    engine: str
    size: int | None = None
    most_of_a_batch: int | None = None
    batches_at_once: int = 1
    parameters: Mapping[str, str]
    slow: tuple[str, ...] = ()
    outputs: Mapping[str, tuple[str, list[int]]] = {"answers": ("BYTES", [-1])}
    explains: bool = False

    def __init__(self, model: "Model") -> None:
        self.model, self.weights = model.model, str(model.weights)
        self.classes = tuple(model.classes)

    @abstractmethod
    def prepare(self, batch_sizes: Sequence[int]) -> None:
        """Compile what batches of these sizes need."""

    @abstractmethod
    def load(self, content: bytes, limits: Limits, name: str, options: Options) -> Any:
        """Decode an image; raises `ImageError`."""

    @abstractmethod
    def compute(self, loaded: list[Any]) -> Sequence[Any]:
        """A result for each of one or more loaded images."""

    @abstractmethod
    def answer(self, loaded: Any, result: Any, options: Options, name: str) -> dict[str, Any]:
        """A result as JSON; raises `ImageError` if its numbers are not finite."""

    @abstractmethod
    def options(self, query: Mapping[str, str]) -> Options:
        """The parameters of a request; raises `RequestError`."""

    def tensors(self, loaded: Any, result: Any, name: str) -> dict[str, Any]:
        """One image's part of each of `outputs`: a row of numbers, or text."""
        return {"answers": json.dumps(self.answer(loaded, result, self.options({}), name))}

    def prepare_explanations(self) -> None:
        """Compile what `explain` needs."""
        raise NotImplementedError

    def explain(self, loaded: Any, label: str | int | None, method: str, name: str) -> Explanation:
        """Explain a label of an image that was loaded with the option "explain".

        Raises:
            ImageError: the network gives no finite numbers.
            RequestError: the request is wrong.
        """
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loaded:
    """The network's input, and the picture for an explanation if one is asked for."""

    pixels: Pixels
    shown: LoadedImage | None = None


class ServedClassifier(Served):
    task = "classification"
    slow = ("explain",)

    def __init__(self, model: Classifier, *, explain: bool = True) -> None:
        super().__init__(model)
        self._classifier, self.engine = model, model.engine.name
        self.size = model.preprocessing.size
        self.batches_at_once = model.engine.batches_at_once
        self.outputs = {
            "probabilities": ("FP32", [-1, len(self.classes)]),
            "labels": ("BYTES", [-1]),
        }
        self.explains = explain and _gives_maps(model)
        self.parameters = {
            "topk": "how many classes to name, 5 by default",
            "threshold": "leaves out less probable classes, if an image may have several",
        }
        if self.explains:
            self.parameters |= {"explain": "true adds an explanation of the best label"}

    def prepare(self, batch_sizes: Sequence[int]) -> None:
        self._classifier.engine.fix_batches(batch_sizes, self._classifier.preprocessing)

    def load(self, content: bytes, limits: Limits, name: str, options: Options) -> _Loaded:
        if options.get("explain"):
            shown = self._classifier.explainer.load(content, limits=limits, name=name)
            return _Loaded(pixels=shown.pixels, shown=shown)
        return _Loaded(pixels=self._classifier.load(content, limits=limits, name=name))

    def compute(self, loaded: list[_Loaded]) -> Sequence[Any]:
        return [*self._classifier.probabilities(np.stack([each.pixels for each in loaded]))]

    def answer(self, loaded: _Loaded, result: Any, options: Options, name: str) -> dict[str, Any]:
        best = self._best(result, options["most"], options["least"], name)
        found: dict[str, Any] = {"predictions": [asdict(each) for each in best]}
        if options["explain"]:
            # An image that may have several classes may have none: the best one is explained.
            explained = self.explain(loaded, int(result.argmax()), "auto", name)
            found["explanation"] = explanation_as_json(explained)
        return found

    def options(self, query: Mapping[str, str]) -> Options:
        check_parameters(query, self.parameters)
        topk = integer(query, "topk") if "topk" in query else None
        threshold = share(query, "threshold") if "threshold" in query else None
        try:
            most, least = self._classifier.choice(topk, threshold)
        except InputError as error:
            raise bad_value(str(error)) from error
        return {"most": most, "least": least, "explain": boolean(query, "explain")}

    def tensors(self, loaded: _Loaded, result: Any, name: str) -> dict[str, Any]:
        del loaded
        (best,) = self._best(result, 1, 0.0, name)
        return {"probabilities": result, "labels": best.label}

    def prepare_explanations(self) -> None:
        self._classifier.explainer.prepare()

    def explain(
        self, loaded: _Loaded, label: str | int | None, method: str, name: str
    ) -> Explanation:
        assert loaded.shown
        try:
            return self._classifier.explainer.explain_loaded(loaded.shown, label, method, name=name)
        except ImageError:
            raise
        except InputError as error:
            raise bad_value(str(error)) from error

    def _best(self, result: Any, most: int, least: float, name: str) -> list[Prediction]:
        if not np.isfinite(result).all():
            raise ImageError(f"{name}: {NOT_FINITE}")
        return self._classifier.named(result, most, least)


def _gives_maps(model: Classifier) -> bool:
    """Whether one or two forward passes explain a label. An exported file must have class maps."""
    if file_engine(model.weights) is None:
        return True
    size, channels = model.preprocessing.size, model.preprocessing.channels
    blank = np.zeros((model.engine.batch or 1, channels, size, size), np.float32)
    return len(model.engine.outputs(blank)) > 1


def served(model: "Model", *, explain: bool = True) -> Served:
    """Put a model behind the interface of a service.

    Args:
        explain: whether it explains labels, if it can.
    """
    if isinstance(model, Classifier):
        return ServedClassifier(model, explain=explain)
    from splitattn.serving.served_dense import served_dense  # a classifier does not need it

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


def check_parameters(query: Mapping[str, str], known: Collection[str]) -> None:
    """Raise `RequestError` if `query` has others than the known parameters."""
    for name in query:
        if name not in known:
            raise bad_value(f"parameters here are {', '.join(known) or 'none'}; got {name!r:.60}")


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
