"""Limits and options of a service."""

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from math import inf

from splitattn.errors import InputError
from splitattn.images.limits import Limits

_MIB = 2**20
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a service works.

    Attributes:
        max_batch: images that the network sees at once.
        max_wait: seconds to wait for a fuller batch while the network is free.
        max_queue: images that may wait or be computed at a time; more are refused with 429.
        max_queued_bytes: of all request bodies that are held at a time; more are refused with 429.
        max_body: bytes of one request; more are refused with 413.
        max_images: of one request; more are refused with 413.
        max_pixels: of one image, as in `Limits`.
        deadline: seconds from the end of a request to its answer; later it is 504.
        body_timeout: seconds that a request's body may take to arrive; later it is 408.
        drain_wait: seconds after SIGTERM in which requests are still taken, while `/readyz` says
            503, so that load balancers notice.
        workers: threads that decode images; None chooses from the number of processors.
        explain: answer `/v1/explain`, which needs the network a second time.
        page: serve the web page at `/`.
        key: what `Authorization: Bearer` must say; None asks for nothing.
        trusted_hosts: names that the `Host` header may have; empty takes any.

    Raises:
        InputError: a number is outside its range, a host is no name, or the key is empty.
    """

    max_batch: int = 8
    max_wait: float = 0.0
    max_queue: int = 128
    max_queued_bytes: int = 256 * _MIB
    max_body: int = 32 * _MIB
    max_images: int = 32
    max_pixels: int = 50_000_000
    deadline: float = 10.0
    body_timeout: float = 20.0
    drain_wait: float = 0.0
    workers: int | None = None
    explain: bool = True
    page: bool = True
    key: str | None = field(default=None, repr=False)
    trusted_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "max_queued_bytes", "max_body", "max_images"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_wait", "drain_wait"):
            if not 0 <= getattr(self, name) < inf:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("deadline", "body_timeout"):
            if not 0 < getattr(self, name) < inf:
                raise InputError(f"{name} must be more than 0, got {getattr(self, name)}")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"workers must be at least 1, got {self.workers}")
        if self.max_images > self.max_queue:
            raise InputError(
                f"max_images must be at most max_queue, {self.max_queue}, got {self.max_images}"
            )
        if not isinstance(self.trusted_hosts, tuple | list):
            raise InputError(
                "trusted_hosts must be a tuple of names such as ('localhost',), got "
                f"{self.trusted_hosts!r:.60}"
            )
        for host in self.trusted_hosts:
            if not (isinstance(host, str) and (_HOST_NAME.fullmatch(host) or _ipv6(host))):
                raise InputError(
                    "trusted_hosts must be names without a scheme, port or path, such as "
                    f"photos.example or ::1, got {host!r:.60}"
                )
        if self.key is not None and not self.key.isascii():
            raise InputError("key must be ASCII text, got other characters")
        if self.key == "":
            raise InputError("key must not be empty: leave it out to ask for none")

    @property
    def limits(self) -> Limits:
        """The limits of one image."""
        return Limits(max_bytes=self.max_body, max_pixels=self.max_pixels)


def same_form(host: str) -> str:
    """`host` in lower case, or in the short form if it is an IPv6 address, to be compared."""
    return _ipv6(host) or host.lower()


def _ipv6(host: str) -> str | None:
    """The short form of an IPv6 address, such as ::1, or None if `host` is something else."""
    try:
        return IPv6Address(host).compressed
    except ValueError:
        return None
