"""Optional libraries: checks that they are installed, and imports them without side effects."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from splitattn.errors import InputError

# Packages to install for a library, where they are not called like it or are several; as the extras
# in pyproject.toml have them. splitattn is in no package index, so "pip install splitattn[extra]"
# would not work.
_PACKAGES = {
    "faster_coco_eval": "faster-coco-eval",
    "grpc": "grpcio",
    "prometheus_client": "prometheus-client",
    "python_multipart": "python-multipart",
    "ray": '"ray[client]"',
    "torch": "torch torchvision",
    "uvicorn": "uvicorn httptools",
    "yaml": "PyYAML",
}
_TELEMETRY = "openvino_telemetry"


def installed(*libraries: str) -> bool:
    """Whether all libraries are installed; they are not imported."""
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


# Its operators are not registered, its library needs other symbols than PyTorch has, or it was
# imported a second time after one of these.
_OF_ANOTHER_PYTORCH = re.compile(
    r"operator torchvision::|torchvision\S*\.so\S* undefined symbol|partially initialized module "
    "'torchvision'"
)


@contextmanager
def torchvision_imported(purpose: str) -> Iterator[None]:
    """Report a torchvision that is missing or was built for another PyTorch.

    Import torchvision inside the context.

    Args:
        purpose: what needs torchvision, for the message.

    Raises:
        InputError: it is missing or does not fit; the message has the command that installs it.
    """
    require(purpose, "torchvision")
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        if not _OF_ANOTHER_PYTORCH.search(str(error)):
            raise
        pytorch = version("torch")
        build = re.search(r"\+(cpu|xpu|cu\d+|rocm[\d.]+)$", pytorch)
        index = f" --index-url https://download.pytorch.org/whl/{build[1]}" if build else ""
        raise InputError(
            f"torchvision must be built for the PyTorch here, got torchvision "
            f"{version('torchvision')} with torch {pytorch} ({str(error)[:200]}); install both "
            f"from one index: pip install --force-reinstall torch torchvision{index}"
        ) from error


@contextmanager
def home_folder() -> Iterator[None]:
    """Provide a home folder for libraries that are imported within the context.

    NNCF fails for a user without a name or a home folder, as in containers. It then gets a
    temporary folder.
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
    """Turn off telemetry of OpenVINO and NNCF when they are imported within the context.

    Otherwise both report their use to Google Analytics as soon as they are imported. Both work
    without the library `openvino_telemetry`, which is hidden here.
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
