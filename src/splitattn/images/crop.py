"""A part of an image, however large the image is."""

from PIL import Image

from splitattn.preprocessing import Box


def cropped(image: Image.Image, box: Box) -> Image.Image:
    """The pixels inside `box`; `image` itself if that is all of it.

    As `Image.crop`, which warns about large images, though `Limits` has already let them pass.
    """
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    return image if size == image.size else image.transform(size, Image.Transform.EXTENT, box)
