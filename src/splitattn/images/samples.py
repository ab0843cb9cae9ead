"""Five real photographs that are part of the package, for checks on real images."""

from pathlib import Path


def sample_photographs() -> tuple[Path, ...]:
    """The JPEG files, sorted by name. `samples/SOURCES.md` has sources; all are free to use."""
    return tuple(sorted((Path(__file__).parent / "samples").glob("*.jpg")))
