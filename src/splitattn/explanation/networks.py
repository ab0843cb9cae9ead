"""Explanation maps: by any method of weights, by some methods of an exported file."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from math import ceil
from threading import Lock

from splitattn.engines.engine import ACTIVATIONS, Array, Engine, Images
from splitattn.errors import InputError
from splitattn.explanation.cam import cam
from splitattn.explanation.found import Found
from splitattn.explanation.layercam import layercam
from splitattn.explanation.rise import rise
from splitattn.explanation.shares import block_shares
from splitattn.graph.folding import CLASS_MAPS, FoldedNetwork
from splitattn.opening import TrainedNetwork

# Where the last map has fewer places a side, it shows little, so "auto" takes an earlier one.
LEAST_GRID = 6
_LAST_STAGE, _EARLIEST_STAGE = 4, 2


class TrainedMaps:
    """A network whose weights are known: it gives any map."""

    def __init__(self, network: TrainedNetwork, engine: str, device: str) -> None:
        self._network, self._engine, self._device = network, engine, device
        self._engines: dict[str, Engine] = {}
        self._one_opens = Lock()

    def prepare(self, size: int) -> None:
        """Open what the method "auto" needs for images of `size` pixels."""
        self._opened(CLASS_MAPS if _shows_much(size) else f"layer{_stage(size)}")
        if not _shows_much(size):
            _ = self._folded

    def explain(self, images: Images, index: int | None, method: str) -> Found:
        size = images.shape[2]
        if method == "auto":
            method = "cam" if _shows_much(size) else "layercam"
        if method == "rise":
            activate = ACTIVATIONS[self._network.metadata.activation]
            return rise(self._opened(CLASS_MAPS), images, index, activate)
        if method == "cam":
            logits, class_maps, *shares = _outputs(self._opened(CLASS_MAPS), images)
            found = cam(logits, class_maps, index)
        else:
            stage = _stage(size)
            logits, features, *shares = _outputs(self._opened(f"layer{stage}"), images)
            found = layercam(logits, features, self._folded, stage, index)
        return replace(found, shares=block_shares(self._network.architecture, shares))

    def _opened(self, map: str) -> Engine:
        """The network in its engine, with a map and the shares as further outputs."""
        with self._one_opens:
            if map not in self._engines:
                shares = ("shares",) if self._network.architecture.radix else ()
                outputs = ("logits", map, *shares)
                opened = self._network.load(self._engine, self._device, outputs=outputs)
                # Images come one by one: nothing is gained by a network for each size of a batch.
                opened.fix_batches([], self._network.metadata.preprocessing)
                self._engines[map] = opened
            return self._engines[map]

    @cached_property
    def _folded(self) -> FoldedNetwork:
        return self._network.fold("branches")


class ExportedMaps:
    """An exported file: it gives logits, and class maps if it was exported with them."""

    def __init__(self, engine: Engine, path: str, activate: Callable[[Array], Array]) -> None:
        self._activate = activate
        self._engine, self._path = engine, path

    def prepare(self, size: int) -> None:
        """Nothing: the file is open."""

    def explain(self, images: Images, index: int | None, method: str) -> Found:
        if method in ("auto", "cam"):
            outputs = _outputs(self._engine, images)
            if len(outputs) > 1:
                return cam(outputs[0], outputs[1], index)
        if method in ("auto", "rise"):
            return rise(self._engine, images, index, self._activate)
        raise InputError(
            f"{self._path} is an exported file without the maps that {method} needs: take method "
            "rise, export it with --class-maps for cam, or take the weights it was exported from"
        )


def _grid(size: int, stage: int) -> int:
    """Places a side of the map that a stage gives, for images of `size` pixels."""
    return ceil(size / (2 << stage))


def _shows_much(size: int) -> bool:
    """Whether the last map is fine enough, for images of `size` pixels."""
    return _grid(size, _LAST_STAGE) >= LEAST_GRID


def _stage(size: int) -> int:
    """The latest of the earlier stages whose map is fine enough, or else the earliest."""
    earlier = range(_LAST_STAGE - 1, _EARLIEST_STAGE - 1, -1)
    return next((stage for stage in earlier if _grid(size, stage) >= LEAST_GRID), _EARLIEST_STAGE)


def _outputs(engine: Engine, images: Images) -> list[Array]:
    """What the network gives for a single image (1, C, H, W), without the axis of the batch."""
    batch = images.repeat(engine.batch or 1, axis=0)
    return [output[0] for output in engine.outputs(batch)]
