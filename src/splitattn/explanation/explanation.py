"""An explanation: a map over an image, as numbers, as a picture and as a page."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from splitattn.explanation import cam, layercam, rise
from splitattn.explanation.found import Map
from splitattn.explanation.shares import BlockShares
from splitattn.images.heat import Scale, Shares, draw_heat, write_page

_MEANINGS = {"cam": cam.MEANING, "layercam": layercam.MEANING, "rise": rise.MEANING}

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Which parts of an image raise the probability of a label.

    Attributes:
        map: float32 (H, W) over the part of the image that the network sees. What the numbers are
            depends on the method:

            - "cam": what each place adds to the logit. The mean over places plus `bias` is the
              logit (class activation mapping, arXiv 1512.04150). After the last stage Grad-CAM is
              the same up to a positive factor and its ReLU.
            - "layercam": the sum over channels of activations times positive gradients at an
              earlier stage (LayerCAM, doi 10.1109/TIP.2021.3089943), times the number of places.
            - "rise": how much more probable the label is in random masks in which the pixel is
              seen than in all of them (RISE, arXiv 1806.07421).
        grid: rows and columns of the explanation: those of `map`, or for "rise" those of the masks.
        highest: the number that the brightest color stands for: the map's highest, but at least one
            logit, or for "rise" four standard errors of the masks. So a map in which nothing stands
            out looks empty.
        label, index: the class that is explained.
        probability: of that class, from 0 to 1.
        logit: of that class.
        bias: the part of the logit that belongs to no place; None unless the method is "cam".
        method: "cam", "layercam" or "rise".
        image: the upright image, RGB. A large one is reduced.
        box: left, top, right and bottom of what the network sees, in pixels of `image`.
        shares: of the splits, block by block; empty where the network does not tell them.
    """

    map: Map
    grid: tuple[int, int]
    highest: float
    label: str
    index: int
    probability: float
    logit: float
    bias: float | None
    method: str
    image: Image.Image
    box: Box
    shares: tuple[BlockShares, ...]

    @property
    def meaning(self) -> str:
        """What the numbers of `map` are, in one line."""
        return _MEANINGS[self.method]

    def overlay(self) -> Image.Image:
        """The image with the map over it; beneath it the scale and the shares of the splits.

        Returns:
            RGB, 640 pixels wide.
        """
        rows, columns = self.grid
        all_seen = tuple(map(round, self.box)) == (0, 0, *self.image.size)
        unseen = "" if all_seen else " The network does not see the dark rim."
        scale = Scale(
            highest=self.highest,
            unit="probability" if self.method == "rise" else "logits",
            notes=(
                f"{self.method}, {rows} x {columns} places: {self.meaning}.",
                f"The map is {self.map.min():.3g} to {self.map.max():.3g}; what is not above 0 has "
                f"no color.{unseen}",
            ),
        )
        shares = [Shares(block=each.block, values=each.shares) for each in self.shares]
        return draw_heat(
            self.image, self.map, self.box, scale, (self.label, self.probability), shares
        )

    def save_html(self, path: str | Path) -> None:
        """Write a page with the picture and its figures, which needs no other file.

        Raises:
            InputError: the file cannot be written.
        """
        write_html([("", self)], path)


def write_html(explained: Iterable[tuple[str, Explanation]], path: str | Path) -> None:
    """Write one page with several explanations, each with the name of its image.

    Raises:
        InputError: the file cannot be written.
    """
    write_page(
        Path(path),
        [(name or each.label, _figures(each), each.overlay()) for name, each in explained],
    )


def _figures(each: Explanation) -> str:
    bias = "" if each.bias is None else f", of which the bias is {each.bias:.2f}"
    return f"{each.label}: {100 * each.probability:.1f} %, logit {each.logit:.2f}{bias}"
