"""Five real photographs that travel with the package, for whatever must be tried on real images."""

from pathlib import Path


def sample_photographs() -> tuple[Path, ...]:
    """JPEG files, by name. `samples/SOURCES.md` says whose they are: all free of restrictions."""
    return tuple(sorted((Path(__file__).parent / "samples").glob("*.jpg")))
