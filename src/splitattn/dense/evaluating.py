"""Measures a detector on annotated images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from splitattn.dense.annotated import AnnotatedImages, read_image, with_classes, with_outlines
from splitattn.dense.detector import Detector
from splitattn.dense.found import FoundObjects
from splitattn.dense.open import open_annotated
from splitattn.dense.scoring import DetectionScores, score
from splitattn.errors import DataError, ImageError
from splitattn.libraries import require


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation(DetectionScores):
    """The figures of a detector, and which one was measured.

    Attributes:
        model, weights, engine: the detector, as `Detector` names it.
        data, split: the images.
        problems: a line for each image that could not be read; nothing was found in it.
    """

    model: str
    weights: str
    engine: str
    data: str
    split: str
    problems: tuple[str, ...]


def evaluate_detector(
    data: str | Path,
    weights: str | Path,
    *,
    split: str = "val",
    engine: str = "auto",
    device: str = "auto",
    on_images: Callable[[int, int], None] = lambda _, __: None,
) -> DetectionEvaluation:
    """COCO's figures of a detector over every image of `data`, each exactly once.

    Args:
        data, split: see `open_annotated`.
        weights, engine, device: see `Detector`.
        on_images: called with how many more images are done, and how many there are.

    Raises:
        InputError: a library is missing, or see `Detector`.
        WeightsError: the weights cannot be read, or are not a detector's.
        DataError: the data cannot be opened, has other classes, or no image could be read.
    """
    require("measuring a detector", "faster_coco_eval")
    detector = Detector(weights, engine=engine, device=device)
    images = with_classes(open_annotated(data, split), detector.classes)
    images = with_outlines(images) if detector.masks else images
    found, problems = find_all(images, detector.find, on_images)
    if len(problems) == len(images):
        raise DataError(f"{data} must have images that can be read, got {problems[0]}")
    return DetectionEvaluation(
        **vars(score(images, found)),
        model=detector.model,
        weights=detector.weights,
        engine=detector.engine,
        data=str(data),
        split=split,
        problems=problems,
    )


def find_all(
    data: AnnotatedImages,
    detect: Callable[[Image.Image], FoundObjects],
    on_images: Callable[[int, int], None] = lambda _, __: None,
) -> tuple[list[FoundObjects], tuple[str, ...]]:
    """What is found in each image; in those that cannot be read, nothing.

    Returns:
        What is found, and a line for each image that cannot be read.
    """
    found, problems = [], []
    for index in range(len(data)):
        try:
            found.append(detect(read_image(data, index)))
        except ImageError as error:
            found.append(FoundObjects.none())
            problems.append(str(error))
        on_images(1, len(data))
    return found, tuple(problems)
