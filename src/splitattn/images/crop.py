"""Crops images of any size."""

from PIL import Image

from splitattn.preprocessing import Box


def cropped(image: Image.Image, box: Box) -> Image.Image:
    """The pixels inside `box`; `image` itself if `box` covers it.

    Like `Image.crop`, but without its warning about large images, which `Limits` replaces.
    """
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    return image if size == image.size else image.transform(size, Image.Transform.EXTENT, box)
