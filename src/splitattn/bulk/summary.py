"""The result of a run: counts of all parts, and a page with examples."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from html import escape

from splitattn.bulk.plan import ShardReport
from splitattn.bulk.shards import ERROR_PATHS, EXAMPLES
from splitattn.bulk.stores import StoreError, is_bucket, read_object
from splitattn.errors import ImageError, counted
from splitattn.images.decode import decode_reduced
from splitattn.images.drawing import draw_labels
from splitattn.images.encode import data_url

_THUMBNAIL = 240
_SHOWN_CLASSES = 50
_SHOWN_ERRORS = 20


@dataclass(frozen=True, kw_only=True)
class BulkReport:
    """The result of a run.

    Attributes:
        images: how many there were.
        errors: how many could not be labeled.
        shards: parts that hold them all.
        labeled_now: images that this call labeled, or tried to.
        seconds: how long this call took, without listing.
        classes: images by their most probable class.
        error_kinds: images by what was wrong with them, without names and numbers.
        error_paths: of each of these kinds, up to three images.
    """

    images: int
    errors: int
    shards: int
    labeled_now: int
    seconds: float
    classes: dict[str, int]
    error_kinds: dict[str, int]
    error_paths: dict[str, list[str]]

    @property
    def rate(self) -> float:
        """Images a second of this call; 0 if it had nothing to do."""
        return self.labeled_now / self.seconds if self.labeled_now else 0.0


class Totals:
    """Counts of all parts, added one by one; memory does not grow with their number.

    Attributes:
        images, errors, classes, error_kinds, error_paths: see `BulkReport`.
        examples: of all parts, see `ShardReport`.
    """

    def __init__(self) -> None:
        self.images = self.errors = 0
        self.classes: Counter[str] = Counter()
        self.error_kinds: Counter[str] = Counter()
        self.error_paths: dict[str, list[str]] = {}
        self.examples: list[tuple[float, str, str, float]] = []

    def add(self, shard: ShardReport) -> None:
        """Add a part."""
        self.images += shard.images
        self.errors += shard.errors
        self.classes.update(shard.classes)
        self.error_kinds.update(shard.error_kinds)
        for kind, paths in shard.error_paths.items():
            known = self.error_paths.setdefault(kind, [])
            known += paths[: ERROR_PATHS - len(known)]
        self.examples = nsmallest(EXAMPLES, [*self.examples, *shard.examples])


def page(report: BulkReport, totals: Totals, white_level: float | None) -> str:
    """The summary as one HTML page that needs nothing else.

    Args:
        white_level: of the pictures, see `Preprocessing`.
    """
    pictures = "".join(_figure(*example[1:], white_level) for example in totals.examples)
    images, parts = counted(report.images, "image"), counted(report.shards, "part")
    errors = counted(report.errors, "error")
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{images}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem }}
td {{ padding: 0 1rem 0 0; vertical-align: top }} td.number {{ text-align: right }}
td.paths {{ font-size: .8rem; overflow-wrap: anywhere }}
.examples {{ display: flex; flex-wrap: wrap; gap: 1rem }}
figure {{ margin: 0; width: {_THUMBNAIL}px; overflow-wrap: anywhere; font-size: .8rem }}
img {{ max-width: 100% }}
</style>
<h1>{images}</h1>
<p>{report.images - report.errors:,} labeled, {errors}, in {parts}.
{_pace(report)}</p>
<h2>Classes</h2>{_table(totals.classes, _SHOWN_CLASSES)}
<h2>Errors</h2>{_table(totals.error_kinds, _SHOWN_ERRORS, totals.error_paths)}
<h2>Examples, chosen at random</h2><div class="examples">{pictures}</div>
</html>
"""


def _pace(report: BulkReport) -> str:
    if not report.labeled_now:
        return ""
    return f"The last call did {report.labeled_now:,} of them, {report.rate:.1f} a second."


def _table(
    counts: Counter[str], most: int, paths_of: Mapping[str, Iterable[str]] | None = None
) -> str:
    """The most common names with their counts, and if `paths_of` is given, some paths of each."""
    if not counts:
        return "<p>None.</p>"

    def paths(name: str) -> str:
        if paths_of is None:
            return ""
        return f'<td class="paths">{"<br>".join(map(escape, paths_of.get(name, ())))}</td>'

    rows = (
        f'<tr><td>{escape(name)}</td><td class="number">{n:,}</td>{paths(name)}</tr>'
        for name, n in counts.most_common(most)
    )
    more = len(counts) - most
    rest = f"<p>{more:,} more are not shown.</p>" if more > 0 else ""
    return f"<table>{''.join(rows)}</table>{rest}"


def _figure(path: str, label: str, probability: float, white_level: float | None) -> str:
    try:
        source = read_object(path)[0] if is_bucket(path) else path
        image = decode_reduced(source, _THUMBNAIL, white_level=white_level).image
    except (ImageError, StoreError):  # gone since, or in a Parquet file
        return f"<figure><figcaption>{escape(path)}: {escape(label)}</figcaption></figure>"
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture = data_url(draw_labels(image, [(label, probability)]), quality=80)
    return (
        f'<figure><img alt="{escape(label)}" src="{picture}">'
        f"<figcaption>{escape(path)}</figcaption></figure>"
    )
