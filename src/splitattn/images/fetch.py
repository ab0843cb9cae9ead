"""An image's bytes from an http(s) URL, within limits."""

import http.client
import time
import urllib.error
import urllib.request

from splitattn.errors import ImageError
from splitattn.images.limits import DEFAULT_LIMITS, Limits

_CHUNK = 64 * 1024


def fetch(url: str, *, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Download `url`.

    Raises:
        ImageError: the server cannot be reached, refuses, is too slow or sends too much. The
            message does not name the URL; the caller knows by which name to call it.
    """
    deadline = time.monotonic() + limits.max_seconds
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "splitattn"})
        with urllib.request.urlopen(request, timeout=limits.max_seconds) as response:
            return _read(response, limits, deadline)
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"the server answered {error.code} {error.reason}") from None
    except TimeoutError:
        raise _too_slow(limits) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _too_slow(limits) from None
        raise ImageError(f"the server cannot be reached: {error.reason}") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(f"the URL cannot be fetched: {error!r}") from None


def _read(response: http.client.HTTPResponse, limits: Limits, deadline: float) -> bytes:
    body = bytearray()
    # read1, not read: a server that drips bytes must meet the deadline between them.
    while chunk := response.read1(_CHUNK):
        body += chunk
        if len(body) > limits.max_bytes:
            raise ImageError(f"an image may have at most {limits.max_bytes:,} bytes, got more")
        if time.monotonic() > deadline:
            raise _too_slow(limits)
    return bytes(body)


def _too_slow(limits: Limits) -> ImageError:
    return ImageError(f"the server must send the image within {limits.max_seconds:g} s, it did not")
