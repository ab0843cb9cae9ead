"""Pictures as JPEG bytes and as data URLs."""

import base64
import io
from typing import Any

from PIL import Image

_QUALITY = 88


def jpeg(picture: Image.Image, quality: int = _QUALITY) -> bytes:
    """An RGB or gray picture as a JPEG file."""
    return _encoded(picture, "jpeg", quality=quality)


def data_url(picture: Image.Image, kind: str = "jpeg", **options: Any) -> str:
    """A picture as the source of an `img` element.

    Args:
        kind: "jpeg" or "png".
        options: Pillow's options for that kind; the default quality of a JPEG is 88.
    """
    options = {"quality": _QUALITY} | options if kind == "jpeg" else options
    content = base64.b64encode(_encoded(picture, kind, **options)).decode()
    return f"data:image/{kind};base64,{content}"


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind.upper(), optimize=True, **options)
    return stream.getvalue()
