"""An image's bytes from an http(s) URL, within limits."""

from splitattn.errors import ImageError
from splitattn.images.limits import DEFAULT_LIMITS, Limits
from splitattn.web import RefusedError, WebError, get


def fetch(url: str, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Download `url`.

    Raises:
        ImageError: the server cannot be reached, refuses, is too slow or sends too much. The
            message does not name the URL; the caller adds the image's name.
    """
    body = bytearray()
    try:
        with get(url, seconds=limits.max_seconds) as reply:
            if (reply.length or 0) > limits.max_bytes:
                raise _too_large(limits)
            for chunk in reply.chunks():
                body += chunk
                if len(body) > limits.max_bytes:
                    raise _too_large(limits)
    except RefusedError as error:
        raise ImageError(f"the server answered {error}") from None
    except WebError as error:
        raise ImageError(f"the URL cannot be fetched: {error}") from None
    return bytes(body)


def _too_large(limits: Limits) -> ImageError:
    return ImageError(f"an image may have at most {limits.max_bytes:,} bytes, got more")
