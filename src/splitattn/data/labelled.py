"""Labelled images: what every kind of data set is opened as."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from splitattn.errors import DataError
from splitattn.images.decode import ImageSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """One split of a data set.

    Attributes:
        origin: where the images were found; two splits with the same origin are the same images.
        classes: names, by label.
        images: what `images.decode` takes. Nothing is decoded yet.
        labels: index into `classes` of each image.
        names: how reports and errors call each image.
    """

    origin: str
    classes: tuple[str, ...]
    images: Sequence[ImageSource]
    labels: Sequence[int]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.labels)

    def renamed(self, classes: tuple[str, ...]) -> "LabelledImages":
        """The same images with other class names.

        Raises:
            DataError: there are not as many names as classes, or two are the same.
        """
        if len(classes) != len(self.classes) or len(set(classes)) != len(classes):
            raise DataError(
                f"class names must be {len(self.classes)} different ones, "
                f"got {len(set(classes))} different of {len(classes)}"
            )
        return replace(self, classes=classes)


def with_classes_of_model(data: LabelledImages, classes: tuple[str, ...]) -> LabelledImages:
    """Give `data` the model's classes, so that its labels are indices of the model's outputs.

    Classes are matched by name if the model knows every name of the data set. Otherwise (folders
    named by WordNet ids, for example) they are matched by order, and their number must be equal.

    Args:
        classes: the model's names by output index; numbers if its outputs have no names.

    Raises:
        DataError: the classes are not the model's.
    """
    if set(data.classes) <= set(classes):
        index = {name: i for i, name in enumerate(classes)}
        labels = [index[data.classes[label]] for label in data.labels]
        return replace(data, classes=classes, labels=labels)
    unknown = [name for name in data.classes if name not in classes]
    # If the model knows some of the names, the others are not its classes under another name.
    if len(data.classes) != len(classes) or len(unknown) < len(data.classes):
        raise DataError(
            f"the data set must have the model's {len(classes)} classes, got "
            f"{len(data.classes)}, such as {unknown[0]!r}; name the weights trained on it"
        )
    if classes == tuple(map(str, range(len(classes)))):
        return data
    logger.warning("class names differ from the model's: matched by their order")
    return replace(data, classes=classes)
