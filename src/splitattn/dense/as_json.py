"""The answers of detectors and segmenters as JSON."""

from typing import TYPE_CHECKING, Any

from splitattn.dense.outlines import to_run_lengths

if TYPE_CHECKING:
    from splitattn.dense.detector import DetectedObject
    from splitattn.dense.segmenter import SegmentedImage


def object_as_json(found: "DetectedObject") -> dict[str, Any]:
    """An object; `mask` is COCO's run lengths, and missing where there is none."""
    row: dict[str, Any] = {
        "label": found.label,
        "index": found.index,
        "score": found.score,
        "box": [*found.box],
    }
    return row | ({"mask": found.mask.to_coco()} if found.mask else {})


def classes_as_json(found: "SegmentedImage", *, masks: bool = True) -> list[dict[str, Any]]:
    """The classes of an image, those with the most pixels first.

    Args:
        masks: each with its pixels, as COCO's run lengths.
    """
    rows = []
    for each in found.shares:
        row: dict[str, Any] = {"label": each.label, "index": each.index, "share": each.share}
        if masks:
            row["mask"] = to_run_lengths(found.class_map == each.index).to_coco()
        rows.append(row)
    return rows
