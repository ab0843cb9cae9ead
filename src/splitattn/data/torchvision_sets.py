"""Classification data sets of torchvision, by name."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from splitattn.data.labeled import LabeledImages
from splitattn.data.splits import check_is_split, split_names, split_of, warn_of_stand_in
from splitattn.errors import DataError, ImageError, nearest
from splitattn.images.decode import ImageSource
from splitattn.libraries import require, torchvision_imported

if TYPE_CHECKING:
    from torchvision import datasets


class _TorchvisionImages(Sequence[ImageSource]):
    """The images of a torchvision data set, without their labels."""

    def __init__(self, dataset: "datasets.VisionDataset") -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> ImageSource:  # type: ignore[override]
        try:
            image: ImageSource = self._dataset[index][0]
        except Exception as error:  # it reads and decodes by itself
            raise ImageError(f"the data set's image {index} cannot be read: {error}") from error
        return image


def open_torchvision(name: str, split: str) -> LabeledImages:
    """Open `split` of torchvision's data set `name`; download it into the cache if needed.

    With SPLITATTN_OFFLINE nothing is downloaded.

    Raises:
        DataError: torchvision has no such data set or cannot open it, or it has no class labels.
        InputError: torch or torchvision is not installed.
    """
    require(f"torchvision:{name}", "torch", "torchvision")
    with torchvision_imported(f"torchvision:{name}"):
        from torchvision import datasets

    from splitattn.weights.cache import cache_folder
    from splitattn.weights.download import offline

    factory: Callable[..., Any] | None = getattr(datasets, name, None)
    if factory is None or name not in datasets.__all__:
        hint = nearest(name, list(datasets.__all__)) or "; torchvision's documentation lists them"
        raise DataError(f"no torchvision data set is called {name!r}{hint}")
    parameters = inspect.signature(factory).parameters
    folder = cache_folder() / "torchvision" / name
    download = not offline()
    if "split" not in parameters:
        check_is_split(split)
    # Data sets name their splits differently. Oxford-IIIT Pet has trainval and no train.
    undivided = ("trainval",) if split_of(split) == "train" else ()
    refusal: Exception | None = None
    for alias in (*split_names(split), *undivided):
        wanted = {"download": download, "train": split_of(split) == "train", "split": alias}
        arguments = {key: value for key, value in wanted.items() if key in parameters}
        try:
            dataset = factory(str(folder), **arguments)
            break
        except ValueError as error:  # it has no split of this name
            refusal = refusal or error
        except Exception as error:
            advice = "check the network" if download else "unset SPLITATTN_OFFLINE to download it"
            advice = f"; {advice}, or put its files into {folder}"
            raise _not_opened(name, alias, error, advice) from error
    else:
        raise _not_opened(name, split, refusal) from refusal
    if "split" in parameters:
        warn_of_stand_in(name, split, alias)
    elif "train" in parameters and not wanted["train"]:
        warn_of_stand_in(name, split, "test")
    # torchvision's data sets use several names for the labels.
    labels = getattr(dataset, "targets", getattr(dataset, "_labels", None))
    if labels is None:
        labels = [label for _, label in getattr(dataset, "_samples", ())]
    classes = tuple(
        name if isinstance(name, str) else name[0] for name in getattr(dataset, "classes", ())
    )
    if not classes or not len(labels):
        raise DataError(f"data must be for classification, got {name}, which has no class labels")
    return LabeledImages(
        origin=f"{name} {arguments}",
        classes=classes,
        images=_TorchvisionImages(dataset),
        labels=[int(label) for label in labels],
        names=[f"{name} {split}[{index}]" for index in range(len(labels))],
    )


def _not_opened(name: str, split: str, error: Exception | None, advice: str = "") -> DataError:
    reason = " ".join(str(error).split()).removesuffix(".")
    return DataError(f"torchvision cannot open {name}, split {split!r}: {reason}{advice}")
