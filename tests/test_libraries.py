"""Optional libraries that are missing or do not fit are reported in one line with the command."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from splitattn import libraries
from splitattn.cli import main
from splitattn.data.toy import write_toy_data
from splitattn.errors import InputError
from splitattn.libraries import require, torchvision_imported

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "fault",
    [
        "RuntimeError('operator torchvision::nms does not exist')",
        "ImportError('torchvision/_C.so: undefined symbol: _ZN3c10')",
    ],
)
@pytest.mark.parametrize("call", ["train data --output run", "data show data"])
def test_a_torchvision_of_another_pytorch_is_one_line_with_the_command(
    fault: str, call: str, tmp_path: Path
) -> None:
    (tmp_path / "fake" / "torchvision").mkdir(parents=True)
    (tmp_path / "fake" / "torchvision" / "__init__.py").write_text(f"raise {fault}")
    about = tmp_path / "fake" / "torchvision-0.1.2.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.2\n")
    write_toy_data(tmp_path / "data")
    paths = os.pathsep.join([str(tmp_path / "fake"), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-m", "splitattn", *call.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"(loading PyTorch\n)?error: torchvision must be built for the PyTorch here, got "
        r"torchvision 0\.1\.2 with torch \d\S+ \(.*(torchvision::nms|undefined symbol).*\); "
        r"install both from one index: pip install --force-reinstall torch torchvision.*\n",
        done.stderr,
    ), done.stderr


@pytest.mark.parametrize(
    ("call", "what"),
    [("train data --output run", "train"), ("data show data", "data show")],
)
def test_a_missing_torchvision_is_one_line_with_the_command(
    call: str,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # it is not found then
    with pytest.raises(SystemExit) as end:
        main(call.split())
    line = "needs torchvision, not installed here: pip install torchvision"
    assert (end.value.code, capsys.readouterr().err) == (2, f"error: {what} {line}\n")
    with pytest.raises(InputError) as raised, torchvision_imported("a detector"):
        pass
    assert str(raised.value) == f"a detector {line}"


@pytest.mark.parametrize(
    ("pytorch", "ending"),
    [
        ("2.13.0", "torch torchvision"),
        ("2.13.0+cpu", "torchvision --index-url https://download.pytorch.org/whl/cpu"),
        ("2.13.0+cu130", "torchvision --index-url https://download.pytorch.org/whl/cu130"),
        ("2.13.0+git1a2b", "torch torchvision"),
    ],
)
def test_the_pair_comes_from_the_index_of_the_installed_pytorch(
    pytorch: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "version", lambda _: pytorch)
    with pytest.raises(InputError) as raised, torchvision_imported("it"):
        raise RuntimeError("operator torchvision::nms does not exist")
    assert str(raised.value).endswith(ending)


def test_other_errors_of_an_import_stay_as_they_are() -> None:
    for error in (ModuleNotFoundError("torchvision"), RuntimeError("CUDA is out of memory")):
        with pytest.raises(type(error)) as raised, torchvision_imported("it"):
            raise error
        assert raised.value is error


@pytest.mark.parametrize(("library", "extra"), [("uvicorn", "serve"), ("ray", "bulk")])
def test_a_missing_library_is_installed_with_what_the_extra_adds(
    library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn parses faster with httptools, and ray:// addresses need Ray's client."""
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    with pytest.raises(InputError) as raised:
        require("it", library)
    packages = str(raised.value).partition("pip install ")[2].replace('"', "").split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {re.split("[><=]", line)[0] for line in project["optional-dependencies"][extra]}
    assert packages
    assert set(packages) <= known
    assert packages == {"uvicorn": ["uvicorn", "httptools"], "ray": ["ray[client]"]}[library]


@pytest.mark.parametrize(
    "fault",
    [
        ImportError("cannot import name 'Foo' from 'torchvision.ops' (/x/torchvision/ops.py)"),
        PermissionError(13, "Permission denied", "/x/torchvision/__init__.py"),
        ImportError("libopenblas.so: undefined symbol: dgemm"),
    ],
)
def test_other_faults_of_an_import_stay_as_they_are(fault: Exception) -> None:
    with pytest.raises(type(fault)) as raised, torchvision_imported("it"):
        raise fault
    assert raised.value is fault


def test_a_second_import_of_a_torchvision_that_does_not_fit_is_reported_too() -> None:
    with pytest.raises(InputError, match="must be built for"), torchvision_imported("it"):
        raise AttributeError(
            "partially initialized module 'torchvision' has no attribute 'extension'"
        )
