"""`evaluate` and `export` in one call."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitattn.data.class_lists import ClassNames
from splitattn.data.folds import is_whole, kept_part
from splitattn.data.labeled import with_classes_of_model
from splitattn.data.sources import open_data
from splitattn.dense.evaluating import DetectionEvaluation, evaluate_detector
from splitattn.dense.exportable import DenseExport, DenseExportReport, export_dense
from splitattn.dense.exporting import BoxParity, DetectorExport
from splitattn.dense.masks import is_masked
from splitattn.dense.open import annotation_format
from splitattn.dense.segmenter_evaluating import SegmentationEvaluation, evaluate_segmenter
from splitattn.dense.segmenter_exporting import PixelParity, SegmenterExport
from splitattn.engines.engine import THRESHOLD
from splitattn.errors import DataError, InputError, check_path
from splitattn.evaluation import Evaluation, measure
from splitattn.exporting import ExportReport, check_arguments, export_network
from splitattn.files import exists
from splitattn.label_scores import LabelScores, measure_labels
from splitattn.opening import TASK, open_network, open_weights, task_of
from splitattn.weights.download import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MeasuredNetwork:
    """Which network was measured, and on what.

    Attributes:
        model, weights: the network, as `Classifier` names it.
        engine: what ran it: engine, version and device.
        data, split: the images.
        size: height and width of the images that the network saw, in pixels.
    """

    model: str
    weights: str
    engine: str
    data: str
    split: str
    size: int


@dataclass(frozen=True, kw_only=True)
class NetworkEvaluation(MeasuredNetwork, Evaluation):
    """The figures of a network, see `Evaluation`, and which one it is, see `MeasuredNetwork`."""


@dataclass(frozen=True, kw_only=True)
class NetworkLabelScores(MeasuredNetwork, LabelScores):
    """The same where images may have several labels: see `LabelScores` and `MeasuredNetwork`."""


def evaluate(
    data: str | Path,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    split: str = "val",
    held_out: bool = False,
    class_names: str | Path | None = None,
    size: int | None = None,
    engine: str = "auto",
    device: str = "auto",
    batch_size: int = 64,
    workers: int | None = None,
    white_level: float | None = None,
    threshold: float | None = None,
    progress: Progress | None = None,
    on_images: Callable[[int, int], None] = lambda _, __: None,
    on_answer: Callable[[Any], None] | None = None,
) -> NetworkEvaluation | NetworkLabelScores | DetectionEvaluation | SegmentationEvaluation:
    """Measure a network over every image of `data`, each exactly once.

    A classifier's figures are top-1, top-5 and loss, or mAP and F1 if it gives several labels; a
    detector's are COCO's, and a segmenter's mIoU and accuracy.

    Args:
        data: a folder, Parquet shards, a CSV file or `torchvision:NAME`, see `splitattn evaluate`;
            for a segmenter images with masks, see `dense.masks.open_masked`.
        model, weights, engine, device: which network in which engine, see `Classifier`.
        split: which part of the data.
        held_out: measure on the training images that the weights' training kept for validation, as
            it does for a fold or without a split of its own.
        class_names: a text file that names the data set's classes, one a line, in label order.
        size: height and width of the images, if not the network's own.
        batch_size: images that the network sees at once.
        workers: threads that decode images; None chooses from the number of processors.
        white_level: see `Classifier`.
        threshold: of a classifier that gives several labels, the smallest probability of a label
            that counts for F1, precision and recall; None is 0.5.
        progress: follows the download of weights, if there is one.
        on_images: called with how many more images are done, and how many there are.
        on_answer: called with the `evaluation.Answer` for each image, in order, or the
            `label_scores.LabelAnswer` if there may be several labels.

    Raises:
        InputError: there is no such model, engine or device, or a library is missing.
        WeightsError: the weights cannot be had or do not fit.
        DataError: the data cannot be opened, has other classes, or no image could be read; or
            nothing was held out of it.
    """
    data = str(data)
    if held_out and split != "val":
        raise InputError(f"--held-out is a part of the training images: leave out --split {split}")
    if (task := task_of(weights)) != TASK:
        assert weights is not None
        if held_out:
            raise InputError(f"--held-out is for classification, got weights for {task}")
        given: dict[str, object] = {"model": model, "size": size, "class_names": class_names}
        given |= {"white_level": white_level, "threshold": threshold}
        if unused := [name for name, value in given.items() if value is not None]:
            raise InputError(f"{unused[0]} is for classification: leave it out for {weights}")
        if task == "detection":
            return evaluate_detector(
                data, weights, split=split, engine=engine, device=device, on_images=on_images
            )
        return evaluate_segmenter(
            data, weights, split=split, engine=engine, device=device, on_images=on_images
        )
    try:
        images = open_data(data, "train" if held_out else split, class_names)
    except DataError as error:
        raise _of_another_task(data, weights) or error from error
    network = open_network(
        model,
        weights,
        engine=engine,
        device=device,
        size=size,
        white_level=white_level,
        progress=progress,
    )
    try:
        images = with_classes_of_model(images, network.classes)
    except DataError as error:
        raise _of_another_task(data, weights) or error from error
    if held_out:
        images = kept_part(images, network.metadata.origin, network.metadata.recipe.get("seed"))
    elif is_whole(images, network.metadata.origin):
        logger.warning(
            "most of these images were trained on; --held-out measures on those that were kept"
        )
    several = network.metadata.activation == "sigmoid"
    if several != (images.label_sets is not None):
        one, other = ("several labels", "one") if several else ("one label", "several")
        raise DataError(
            f"data must have as many labels for each image as {network.weights} gives, which is "
            f"{one}, got {other} in {data}"
        )
    if threshold is not None and not several:
        raise InputError(
            f"a threshold is for weights that give several labels, got {threshold} for "
            f"{network.weights}: leave it out"
        )
    arguments: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": workers,
        "on_images": on_images,
        "on_answer": on_answer,
    }
    of_network: dict[str, Any] = {
        "model": network.model,
        "weights": network.weights,
        "engine": network.engine.name,
        "data": data,
        "split": images.part or split,
        "size": network.preprocessing.size,
    }
    if several:
        least = THRESHOLD if threshold is None else threshold
        scores = measure_labels(
            network.engine, images, network.preprocessing, threshold=least, **arguments
        )
        return NetworkLabelScores(**vars(scores), **of_network)
    measured = measure(network.engine, images, network.preprocessing, **arguments)
    return NetworkEvaluation(**vars(measured), **of_network)


def _of_another_task(data: str, weights: str | Path | None) -> DataError | None:
    """The error for data that no classifier can be measured on, or None for other data."""
    if found := annotation_format(data):
        kind, needed = f"annotated boxes ({found.name})", "a detector"
    elif is_masked(data):
        kind, needed = "masks", "a segmenter"
    else:
        return None
    got = "none" if weights is None else f"{weights}, for classification"
    if weights is not None and not exists(weights):
        got = f"{weights}: no such file or folder"
    return DataError(
        f"{data} has {kind}: evaluate needs weights of {needed} (--weights), got {got}"
    )


def export(
    path: str | Path,
    *,
    model: str | None = None,
    weights: str | Path | None = None,
    format: str | None = None,
    precision: str = "fp32",
    calibration: str | Path | None = None,
    batch_size: int | None = None,
    dynamic_size: bool = False,
    opset: int | None = None,
    class_maps: bool = False,
    class_names: ClassNames | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    on_images: Callable[[int, int], None] = lambda _, __: None,
    on_step: Callable[[str], None] = lambda _: None,
) -> ExportReport | DenseExportReport[BoxParity] | DenseExportReport[PixelParity]:
    """Write a network for another engine, and compare the file with the network on photographs.

    The file takes "images", normalized float32 (B, C, H, W), and gives "logits", float32
    (B, classes). Files of detectors and segmenters give something else, see
    `dense.exporting.DetectorExport` and `dense.segmenter_exporting.SegmenterExport`. A file
    carries its classes and preprocessing, so `predict --weights FILE` needs nothing else. The
    report is stored beside it as `NAME.parity.json`.

    Args:
        path: of the file; an OpenVINO network has its weights in a `.bin` file beside it.
        model, weights: which network, see `Classifier`.
        format: "onnx", "openvino" or "torch_export"; None goes by the ending of `path`.
        precision: "fp32"; "fp16", in which ONNX and torch.export also compute, while OpenVINO only
            stores weights in it; or "int8", for ONNX and OpenVINO.
        calibration: DATA or any folder of images, for int8: ranges come from up to 300 training
            images, and labels are compared on all validation images. Parity is measured on its
            images too, or else on photographs that ship with the package.
        batch_size: the only batch size that the file takes, which some engines run faster; None
            takes any.
        dynamic_size: take images of other heights and widths too.
        opset: version of the ONNX operators, 11 to 20; None is 13, which ONNX Runtime 1.16 and
            OpenCV 4.8 read.
        class_maps: give "class_maps" too, float32 (B, classes, H / 32, W / 32): what each place
            adds to each logit, so that `explain` takes the file. For ONNX and OpenVINO.
        class_names: what the file names its classes, see `Classifier`; None is as the weights do.
        workers: threads that decode images; None chooses from the number of processors.
        progress: follows the download of weights, if there is one.
        on_images: called with how many more images are done, and how many this step has.
        on_step: called with what is done next.

    Raises:
        InputError: an argument is wrong, a library is missing, or the file cannot be written.
        WeightsError: the weights cannot be had or do not fit.
        DataError: the calibration images cannot be used.
        ExportError: the file computes something else; it is discarded.
    """
    calibration = None if calibration is None else str(calibration)
    check_path("path", path)
    path = Path(path)
    if (task := task_of(weights)) != TASK:
        assert weights is not None
        if model is not None:
            raise InputError(f"{weights} is for {task} and says its model: leave out --model")
        if class_names is not None:
            raise InputError(f"--class-names is for classifiers, {weights} is for {task}")
        if class_maps:
            raise InputError(f"--class-maps is for classifiers, {weights} is for {task}")
        kinds: dict[str, type[DenseExport[Any, Any, Any]]]
        kinds = {"detection": DetectorExport, "segmentation": SegmenterExport}
        return export_dense(
            kinds[task],
            path,
            weights,
            format=format,
            precision=precision,
            calibration=calibration,
            batch_size=batch_size,
            opset=opset,
            on_images=on_images,
            on_step=on_step,
        )
    check_arguments(
        path,
        format=format,
        precision=precision,
        calibration=calibration,
        batch_size=batch_size,
        opset=opset,
    )
    return export_network(
        open_weights(model, weights, class_names=class_names, progress=progress),
        path,
        format=format,
        precision=precision,
        calibration=calibration,
        batch_size=batch_size,
        dynamic_size=dynamic_size,
        opset=opset,
        class_maps=class_maps,
        workers=workers,
        on_images=on_images,
        on_step=on_step,
    )
