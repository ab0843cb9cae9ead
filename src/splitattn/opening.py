"""Opens a network by any of its names: engine, classes, preprocessing and where it came from.

A network is named by a model and a tag, a file of weights in any layout, a training's folder, an
`hf-hub:` or `local-dir:` name, or a file that `export` wrote.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitattn.architectures import Architecture, architecture
from splitattn.data.class_lists import ClassList, ClassNames, class_list, name_outputs
from splitattn.engines.engine import Engine
from splitattn.engines.table import (
    EngineRow,
    check_device,
    fastest_engine,
    file_engine,
    find_engine,
)
from splitattn.errors import InputError, WeightsError, check_path
from splitattn.files import exists
from splitattn.graph import segmentation
from splitattn.graph.detection import places
from splitattn.graph.folding import FoldedNetwork, Form, fold
from splitattn.graph.reference import Reference
from splitattn.preprocessing import Preprocessing, at_size
from splitattn.weights.checkpoint import check_fits, read_checkpoint
from splitattn.weights.download import Progress
from splitattn.weights.matching import HEAD
from splitattn.weights.metadata import ModelMetadata, read_metadata, unreadable
from splitattn.weights.resolve import check_owner, resolve

TASK = "classification"
_TRIED_SIZE = 64  # pixels; on such images a detector or segmenter is tried, which takes any size
_REDUCTION = 32  # stride of the last map, in pixels


@dataclass(frozen=True, kw_only=True)
class FileState:
    """A file with its inode, size and time in ns, to notice if it was replaced or written."""

    path: Path
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        now = path.stat()
        return cls(path=path, inode=now.st_ino, size=now.st_size, modified=now.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class OpenedNetwork:
    """A network that is ready to run.

    Attributes:
        engine: runs it.
        weights: tag, path or `hf-hub:` name of its weights.
        metadata: model, classes, preprocessing, and recipe and metrics where the file says them.
        file: the weights as they were read; None of an exported file.
    """

    engine: Engine
    weights: str
    metadata: ModelMetadata
    file: FileState | None = None

    @property
    def model(self) -> str:
        """Name of the architecture."""
        return self.metadata.model

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by output index."""
        return self.metadata.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        return self.metadata.preprocessing

    def prepared(self, preprocessing: Preprocessing) -> "OpenedNetwork":
        """The same network, its images prepared in another way."""
        return replace(self, metadata=replace(self.metadata, preprocessing=preprocessing))


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A network as it was trained: the tensors, and what is known about them.

    Attributes:
        architecture: the network's shape.
        tensors: the state dict, by official key.
        metadata: model, classes, preprocessing, and recipe and metrics where the file says them.
        weights: tag, path or `hf-hub:` name by which it was asked for.
        file: the tensors' file; None of a network that was made in memory.
    """

    architecture: Architecture
    tensors: Mapping[str, NDArray[Any]]
    metadata: ModelMetadata
    weights: str
    file: FileState | None = None

    def fold(self, form: Form) -> FoldedNetwork:
        """The inference network."""
        return fold(self.architecture, self.tensors, form=form)

    def reference(self) -> Reference:
        """The plain network, which every engine must equal."""
        return Reference(self.architecture, self.tensors)

    def without_classifier(self) -> "TrainedNetwork":
        """The network that gives the features, (B, D), which its classifier would see."""
        kept = {key: array for key, array in self.tensors.items() if key not in HEAD}
        return replace(self, tensors=kept)

    def load(
        self,
        engine: str = "auto",
        device: str = "auto",
        *,
        size: int | None = None,
        outputs: tuple[str, ...] = (),
        quick_start: bool = False,
    ) -> Engine:
        """The network in an engine.

        Args:
            engine: a name out of `engines.table`; "auto" is the fastest that is installed.
            device: "auto" or a device by name.
            size: height and width of the images, in pixels; None takes the preprocessing's.
            outputs: what the network gives, by the names of `to_onnx`, logits or features first;
                empty is these alone.
            quick_start: see `open_network`.

        Raises:
            InputError: there is no such engine or device, the engine does not run on the device,
                or a library is missing.
        """
        row = fastest_engine(device) if engine == "auto" else find_engine(engine)
        module = row.load_module()
        network = replace(self.fold(row.form_on(device)), outputs=outputs)
        size = self.metadata.preprocessing.size if size is None else size
        return module.load(network, size=size, device=device, quick_start=quick_start)


def open_network(
    model: str | None = None,
    weights: str | Path | None = None,
    *,
    engine: str = "auto",
    device: str = "auto",
    size: int | None = None,
    white_level: float | None = None,
    class_names: ClassNames | None = None,
    quick_start: bool = False,
    progress: Progress | None = None,
) -> OpenedNetwork:
    """Open the network that a person means.

    Args:
        model: name of a model, or an `hf-hub:` or `local-dir:` name; None takes the model that the
            weights belong to.
        weights: a tag of the catalogue, a file, a folder, an `hf-hub:` or `local-dir:` name, or an
            exported file; None takes the model's default weights, and without a model those that
            ship inside the package.
        engine: what runs it; "auto" is the fastest that is installed, or an exported file's own.
        device: "auto" is CUDA where PyTorch sees it, and else the CPU.
        size: height and width of the images, if not the network's own.
        white_level: the value of full brightness in images of more than 8 bits per channel, if not
            the network's own, which may be that of each image.
        class_names: names of the outputs, in their order, if not the network's own: a text file,
            as `read_class_list` reads it, or the names.
        quick_start: for a few images: weights are open sooner, and each image takes longer. Only
            ONNX Runtime has this choice.
        progress: follows the download of weights, if there is one.

    Raises:
        InputError: there is no such model, engine or device, or a library is missing.
        DataError: the class names cannot be read, or are not one for each output.
        WeightsError: the weights cannot be found, verified or matched to the model.
    """
    check_device(device)
    if engine != "auto":
        find_engine(engine)  # wrong names fail before anything is downloaded
    # Before any download: the list may be one that cannot be read.
    listed = None if class_names is None else class_list(class_names)
    if weights is not None and (row := file_engine(weights)):
        opened = _open_exported(row, Path(weights), model, engine=engine, device=device, size=size)
        opened = replace(opened, metadata=_named(opened.metadata, listed))
        return _with_white_level(opened, white_level)
    trained = open_weights(model, weights, class_names=listed, progress=progress)
    preprocessing = trained.metadata.preprocessing
    if size is not None:
        preprocessing = at_size(preprocessing, size)
    opened = OpenedNetwork(
        engine=trained.load(engine, device, size=preprocessing.size, quick_start=quick_start),
        weights=trained.weights,
        metadata=trained.metadata,
        file=trained.file,
    )
    return _with_white_level(opened.prepared(preprocessing), white_level)


def _named(metadata: ModelMetadata, listed: ClassList | None) -> ModelMetadata:
    if listed is None:
        return metadata
    return replace(metadata, classes=name_outputs(listed, metadata.classes))


def _with_white_level(opened: OpenedNetwork, white_level: float | None) -> OpenedNetwork:
    if white_level is None:
        return opened
    return opened.prepared(replace(opened.preprocessing, white_level=white_level))


def open_weights(
    model: str | None = None,
    weights: str | Path | None = None,
    *,
    class_names: ClassNames | ClassList | None = None,
    progress: Progress | None = None,
    unchanged: FileState | None = None,
) -> TrainedNetwork:
    """The trained network that a person means: see `open_network` for the other arguments.

    Args:
        unchanged: the file must still be this one.

    Raises:
        InputError: there is no such model.
        DataError: the class names cannot be read, or are not one for each output.
        WeightsError: the weights cannot be found, verified or matched to the model, have no
            classifier, or nothing says how images of their channels are prepared; or they have
            changed.
    """
    listed = None if class_names is None else class_list(class_names)
    trained = _open_trained(model, weights, progress, unchanged)
    assert trained.file is not None
    path = trained.file.path
    outputs = len(trained.tensors.get(HEAD[1], ()))
    if not outputs:
        raise WeightsError(
            f"{path} has no classifier, so it cannot label images: fine-tune it first, or name "
            "other weights"
        )
    if outputs == 1 and trained.metadata.activation == "softmax":
        raise WeightsError(
            f"{path} has one output, whose softmax is always 1: train two classes, or, if its "
            'sigmoid is meant, save_pretrained it with ModelMetadata(activation="sigmoid", ...)'
        )
    if len(trained.metadata.classes) != outputs:
        raise WeightsError(
            f"{path} must name each of its {outputs} classes, it names "
            f"{len(trained.metadata.classes)}; write the file again"
        )
    return replace(trained, metadata=_named(trained.metadata, listed))


def open_body(
    model: str | None = None,
    weights: str | Path | None = None,
    *,
    progress: Progress | None = None,
    unchanged: FileState | None = None,
) -> TrainedNetwork:
    """As `open_weights`, but without the classifier, which the weights need not have.

    Raises:
        InputError, WeightsError: see `open_weights`.
    """
    return _open_trained(model, weights, progress, unchanged).without_classifier()


def _open_trained(
    model: str | None,
    weights: str | Path | None,
    progress: Progress | None,
    unchanged: FileState | None,
) -> TrainedNetwork:
    resolved = resolve(model, weights, progress=progress)
    file = FileState.of(resolved.path)
    if unchanged not in (None, file):
        raise WeightsError(
            f"{resolved.path} must be the file that predictions are made with, and has changed "
            "since it was opened: open it again"
        )
    checkpoint = read_checkpoint(resolved.path)
    if checkpoint.metadata and checkpoint.metadata.task != TASK:
        raise _labels_nothing(resolved.path, checkpoint.metadata.task)
    found = check_fits(checkpoint, resolved.model)
    own = checkpoint.metadata
    channels = resolved.preprocessing.channels
    if found.in_chans != channels:
        raise WeightsError(
            f"{resolved.path} takes images of {found.in_chans} channels, but their mean and "
            f"deviation are known for {channels}: name other weights, or write them with their "
            "metadata (save_pretrained)"
        )
    classes = resolved.classes or tuple(map(str, range(found.num_classes)))
    return TrainedNetwork(
        architecture=architecture(resolved.model),
        tensors=checkpoint.tensors,
        weights=resolved.tag or str(resolved.path),
        file=file,
        metadata=ModelMetadata(
            model=resolved.model,
            classes=classes,
            preprocessing=resolved.preprocessing,
            recipe=own.recipe if own else {},
            metrics=own.metrics if own else {},
            origin=own.origin if own else {},
            activation=own.activation if own else "softmax",
        ),
    )


def task_of(weights: str | Path | None) -> str:
    """What the outputs of weights are, a file's or a training's folder's: "detection", ..."""
    if weights is not None:
        check_path("weights", weights)
    if weights is None or not exists(weights):
        return TASK
    path = Path(weights)
    if row := file_engine(weights):
        with _reading(path):
            return row.load_file_module().read_metadata(path).task
    metadata = read_metadata(path)
    return TASK if metadata is None else metadata.task


def _open_exported(
    row: EngineRow, path: Path, model: str | None, *, engine: str, device: str, size: int | None
) -> OpenedNetwork:
    check_engine_of_file(row, path, engine)
    opened, metadata = open_exported(row, path, device=device)
    if metadata.task != TASK:
        raise _labels_nothing(path, metadata.task)
    preprocessing = metadata.preprocessing
    check_owner(path, metadata.model, model)
    if size is not None and opened.size not in (None, size):
        raise InputError(
            f"{path} takes images of {opened.size} pixels, got --size {size}: leave it out, or "
            "export it with --dynamic-size"
        )
    if size is not None:
        preprocessing = at_size(preprocessing, size)
    return OpenedNetwork(engine=opened, weights=str(path), metadata=metadata).prepared(
        preprocessing
    )


def check_engine_of_file(row: EngineRow, path: Path, engine: str) -> None:
    """Raise unless `engine` is "auto" or the one that an exported file is for.

    Raises:
        InputError: it is another one.
    """
    if engine not in ("auto", row.name):
        raise InputError(
            f"{path} runs in engine {row.name}, got {engine!r}: leave out --engine, or name the "
            "weights it was exported from"
        )


def open_exported(
    row: EngineRow, path: Path, *, device: str = "auto", trusted: bool = False
) -> tuple[Engine, ModelMetadata]:
    """Open an exported file and try it on blank images.

    Args:
        row: the engine that the file is for.
        trusted: this process has just written the file.

    Raises:
        InputError: the engine is not installed, or does not run on the device.
        WeightsError: the file cannot be read, is damaged, or was not written by `export`.
    """
    module = row.load_file_module()
    with _reading(path):
        engine, metadata = module.open_file(path, device=device, trusted=trusted)
    _try(engine, path, metadata)
    return engine, metadata


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what libraries raise about an exported file into errors that a person can act on."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # damaged bytes make the libraries raise anything
        raise WeightsError(f"{path} is damaged: export it again") from error


def _labels_nothing(path: Path, task: str) -> WeightsError:
    return WeightsError(
        f"{path} is for {task} and labels no image: use splitattn predict, splitattn.Detector or "
        "splitattn.Segmenter"
    )


def _try(engine: Engine, path: Path, metadata: ModelMetadata) -> None:
    """Raise unless the network takes images and has a name for each output."""
    size = metadata.preprocessing.size if metadata.task == TASK else _TRIED_SIZE
    channels, classes = metadata.preprocessing.channels, len(metadata.classes)
    images = np.zeros((engine.batch or 2, channels, size, size), np.float32)
    try:
        found = [output.shape for output in engine.outputs(images)]
    except Exception as error:  # as above
        raise WeightsError(
            f"{path} does not take images of {size} pixels and {channels} channels, as it says: "
            "export it again"
        ) from error
    batch, side = len(images), size // segmentation.STRIDE
    rows = sum(places(size, size, str(metadata.head.get("name"))))
    place = ceil(size / _REDUCTION)
    # A classifier may give class maps or not.
    class_maps = [(batch, classes, place, place)] * (len(found) > 1)
    expected = {
        "detection": [(batch, rows, 4), (batch, rows, classes), (*found[-1][:1], 3)],
        "segmentation": [(batch, classes, side, side)],
    }
    if found != expected.get(metadata.task, [(batch, classes), *class_maps]):
        raise WeightsError(
            f"{path} must name each of its outputs, it names {classes} and gives "
            f"{', '.join(map(str, found))} for {len(images)} images: export it again"
        )
