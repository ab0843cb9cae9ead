"""The optional libraries: whether they are here, and imported without what they do besides."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from splitattn.errors import InputError

# What to install for a library, where that is more than the library. No index has splitattn, so an
# extra of it would not work for everyone.
_PACKAGES = {
    "faster_coco_eval": "faster-coco-eval",
    "grpc": "grpcio",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "torch": "torch torchvision",
    "yaml": "PyYAML",
}
_TELEMETRY = "openvino_telemetry"


def installed(*libraries: str) -> bool:
    """Whether all of them can be imported. They are not imported."""
    return all(find_spec(library) for library in libraries)


def require(purpose: str, *libraries: str) -> None:
    """Raise unless all libraries that `purpose` needs are installed.

    Raises:
        InputError: a library is missing; the message has the command that installs it.
    """
    missing = [library for library in libraries if not installed(library)]
    if missing:
        packages = " ".join(_PACKAGES.get(library, library) for library in missing).split()
        raise InputError(
            f"{purpose} needs {' and '.join(missing)}, not installed here: "
            f"pip install {' '.join(dict.fromkeys(packages))}"
        )


@contextmanager
def home_folder() -> Iterator[None]:
    """Libraries that ask for the home folder, imported in this block, are told one.

    A user without a name or a home, as containers have, would be an error to NNCF. It is told a
    folder that is gone when the block ends.
    """
    try:
        Path.home()
    except RuntimeError:
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            os.environ["HOME"] = folder
            try:
                yield
            finally:
                del os.environ["HOME"]
    else:
        yield


@contextmanager
def telemetry_off() -> Iterator[None]:
    """OpenVINO and NNCF, imported in this block, report nothing to their makers.

    Both send their use to Google Analytics unless somebody objected, from the import on. Labeling
    an image on one's own machine is nobody else's business, and SPLITATTN_OFFLINE forbids it too.
    Both work without the library `openvino_telemetry`, and this block hides it.
    """
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    before = modules.get(_TELEMETRY)
    modules[_TELEMETRY] = None
    try:
        yield
    finally:
        del modules[_TELEMETRY]
        if before is not None:
            modules[_TELEMETRY] = before
