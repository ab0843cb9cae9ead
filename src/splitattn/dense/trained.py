"""Reads trained detectors and segmenters, and opens them in any engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from numpy.typing import NDArray

from splitattn.engines.engine import Engine
from splitattn.engines.table import (
    check_device,
    fastest_engine,
    file_engine,
    find_engine,
    formats,
)
from splitattn.errors import InputError, WeightsError
from splitattn.graph.folding import Form
from splitattn.opening import check_engine_of_file, open_exported
from splitattn.preprocessing import Preprocessing
from splitattn.weights.checkpoint import check_numbers, read_arrays_by_own_keys
from splitattn.weights.in_folder import weights_file
from splitattn.weights.metadata import ModelMetadata, read_metadata

if TYPE_CHECKING:
    from torch import nn

Runner = TypeVar("Runner")
COUNTER = "num_batches_tracked"  # of batch norms, which inference does not need
# What opens a file in Python, by its task.
_OPENS = {
    "classification": "splitattn.Classifier",
    "detection": "splitattn.Detector",
    "segmentation": "splitattn.Segmenter",
}


@dataclass(frozen=True, kw_only=True)
class TrainedDense(ABC, Generic[Runner]):
    """The weights of a trained detector or segmenter. A `Runner` answers for one image.

    Attributes:
        what, task: what it is called, and the task that its file names.
        folded_heads: heads that have an inference network, and so run in every engine.
        path: of the file.
        metadata: what the file says about itself.
        head, channels: as in `create_detector` and `create_segmenter`.
        tensors: the state dict.
    """

    what: ClassVar[str]
    task: ClassVar[str]
    folded_heads: ClassVar[tuple[str, ...]]

    path: Path
    metadata: ModelMetadata
    head: str
    channels: int
    tensors: Mapping[str, NDArray[Any]]

    @classmethod
    def read(cls, weights: str | Path) -> Self:
        """Read a file that a training wrote, or the one in the training's folder.

        Raises:
            WeightsError: the weights cannot be read, are not those of this task, or have numbers
                that no network can use.
        """
        path = weights_file(Path(weights))
        metadata = read_metadata(path)
        if metadata is None:
            raise WeightsError(
                f"{path} must be a {cls.what}'s weights, got weights without metadata; if it is an "
                "exported network, pass the weights it was exported from"
            )
        if metadata.task != cls.task:
            raise WeightsError(f"{path} must be a {cls.what}'s weights, {_for_another(metadata)}")
        head, channels = metadata.head.get("name"), metadata.head.get("channels")
        if not isinstance(head, str) or type(channels) is not int:
            raise WeightsError(
                f"the metadata of {path} must name its head and channels, got {metadata.head!r:.80}"
            )
        tensors = read_arrays_by_own_keys(path)
        check_numbers(tensors, path)
        return cls(path=path, metadata=metadata, head=head, channels=channels, tensors=tensors)

    @abstractmethod
    def fold(self, form: Form) -> Any:
        """The inference network, which only `folded_heads` have.

        Raises:
            WeightsError: the tensors are not those of the head.
        """

    @abstractmethod
    def in_torch(self, device: str) -> Runner:
        """The network in PyTorch, in evaluation mode.

        Raises:
            InputError: there is no such device, or PyTorch is missing.
            WeightsError: the tensors are not those of the head.
        """

    def check_shapes(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise `WeightsError` unless the tensors have these shapes, by key."""
        wanted = {key: shape for key, shape in expected.items() if not key.endswith(COUNTER)}
        found = {
            key: array.shape for key, array in self.tensors.items() if not key.endswith(COUNTER)
        }
        differing = sorted(k for k in {*wanted, *found} if wanted.get(k) != found.get(k))
        if differing:
            raise self._unfit(
                f"{differing[0]} must be {wanted.get(differing[0])}, got {found.get(differing[0])}"
            )

    def load_into(self, network: "nn.Module") -> None:
        """Load the tensors, or raise `WeightsError` if they are those of another network."""
        import torch

        try:
            network.load_state_dict({k: torch.from_numpy(v) for k, v in self.tensors.items()})
        except RuntimeError as error:
            raise self._unfit(" ".join(str(error).split())[:200]) from error

    def _unfit(self, fault: str) -> WeightsError:
        return WeightsError(f"{self.path} does not fit its own metadata: {fault}")


@dataclass(frozen=True, kw_only=True)
class OpenedDense(Generic[Runner]):
    """A detector or segmenter that is ready to run.

    Attributes:
        runner: answers for one image.
        engine: what runs it: engine, version and device.
        metadata: what the file says about itself.
        path: of the file.
        network: in its engine; None in PyTorch.
    """

    runner: Runner
    engine: str
    metadata: ModelMetadata
    path: str
    network: Engine | None = None

    def fix_shapes(self) -> None:
        """Compile one network for images of all sizes, and use it from now on.

        A server calls this, so that no request waits for a compiler.
        """
        if self.network:
            self.network.fix_batches([], self.metadata.preprocessing)


def open_dense(
    kind: type[TrainedDense[Runner]],
    weights: str | Path,
    in_engine: Callable[[Engine, Preprocessing], Runner],
    *,
    engine: str,
    device: str,
) -> OpenedDense[Runner]:
    """Open what a training or an export wrote.

    Args:
        kind: what it must be.
        in_engine: makes a runner of a network in an engine.
        engine, device: see `Detector`.

    Raises:
        InputError: there is no such engine or device, or a library is missing.
        WeightsError: the weights cannot be read, or are not those of `kind`.
    """
    check_device(device)
    if engine != "auto":
        find_engine(engine)  # wrong names fail before anything is read
    if file_row := file_engine(weights):
        path = Path(weights)
        check_engine_of_file(file_row, path, engine)
        opened, metadata = open_exported(file_row, path, device=device)
        if metadata.task != kind.task:
            raise WeightsError(f"{path} must be a {kind.what}, {_for_another(metadata)}")
        return OpenedDense(
            runner=in_engine(opened, metadata.preprocessing),
            engine=opened.name,
            metadata=metadata,
            path=str(path),
            network=opened,
        )
    trained = kind.read(weights)
    metadata, path = trained.metadata, trained.path
    able = trained.head in kind.folded_heads
    if engine == "auto":
        row = fastest_engine(device) if able else find_engine("torch")
    else:
        row = find_engine(engine)
    network: Engine | None = None
    if row.name == "torch":
        runner, name = trained.in_torch(device), row.name
    elif not (able and row.any_output):
        others = [other.name for other in formats().values() if other.any_output]
        engines = [*(others if able else ()), "torch"]
        raise InputError(
            f"a {kind.what} with head {trained.head} runs in engine {' or '.join(engines)}, "
            f"got {engine!r}"
        )
    else:
        folded = trained.fold(row.form_on(device))
        network = row.load_module().load(folded, size=None, device=device)
        runner, name = in_engine(network, metadata.preprocessing), network.name
    return OpenedDense(
        runner=runner, engine=name, metadata=metadata, path=str(path), network=network
    )


def _for_another(metadata: ModelMetadata) -> str:
    """The end of a message: what a file is for, and what opens it."""
    hint = f": use {_OPENS[metadata.task]}" if metadata.task in _OPENS else ""
    return f"it is for {metadata.task}{hint}"
