"""Wheel and sdist hold what they should and work outside the checkout."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"splitattn-{PROJECT['version']}"
# Code, class names, weights, photographs and their credits, the report's style, the web page.
IN_PACKAGE = {".py", ".typed", ".txt", ".safetensors", ".jpg", ".md", ".css", ".html", ".js"}


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command without PYTHON* variables; returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environment | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel and sdist of the checkout, and the wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    sdist = folder / f"{NAME}.tar.gz"
    again = folder / "again"
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir")
    pip("wheel", *offline, "-w", again, sdist, cwd=folder)
    wheel = f"{NAME}-py3-none-any.whl"
    return {"wheel": folder / wheel, "sdist": sdist, "wheel of the sdist": again / wheel}


def package_files() -> set[str]:
    return {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "splitattn").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("which", ["wheel", "wheel of the sdist"])
def test_the_wheel_is_the_package_and_nothing_else(built: dict[str, Path], which: str) -> None:
    with zipfile.ZipFile(built[which]) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"{NAME}.dist-info/METADATA").decode()
        commands = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    about = {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "licenses/NOTICE",
    }
    assert names == package_files() | {f"{NAME}.dist-info/{name}" for name in about}
    assert {Path(name).suffix for name in package_files()} == IN_PACKAGE
    assert "splitattn/py.typed" in names
    assert built[which].stat().st_size < 20_000_000
    assert commands == "[console_scripts]\nsplitattn = splitattn.__main__:run\n"
    assert (ROOT / "README.md").read_text(encoding="utf-8") in metadata
    assert set(re.findall(r"^Provides-Extra: (.*)$", metadata, re.MULTILINE)) == set(
        PROJECT["optional-dependencies"]
    )


def test_the_sdist_is_the_source_with_its_tests_and_nothing_else(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.removeprefix(f"{NAME}/") for name in sdist.getnames()}
    folders = {"benchmarks", "constraints", "docs", "scripts", "src", "tests"}
    files = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "NOTICE", "PKG-INFO", "README.md"}
    files |= {"pyproject.toml", ".gitignore"}
    assert {name.partition("/")[0] for name in names} == folders | files
    assert {f"src/{name}" for name in package_files()} <= names
    assert str(Path(__file__).relative_to(ROOT)) in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


SMOKE = """
import json, sys
import splitattn.cli
assert "torch" not in sys.modules
from splitattn.images.samples import sample_photographs
print(json.dumps([splitattn.__file__, splitattn.__version__, str(sample_photographs()[0])]))
"""


def passes_the_smoke_test(environment: Path, desk: Path) -> None:
    """Check that the environment's own package is imported and labels a photograph."""
    own = environment / ("Scripts" if os.name == "nt" else "bin")
    offline = {"SPLITATTN_OFFLINE": "1", "SPLITATTN_CACHE": str(desk / "cache")}
    file, version, photograph = json.loads(run(own / "python", "-c", SMOKE, cwd=desk))
    assert Path(file).is_relative_to(environment)
    assert version == PROJECT["version"]
    assert "predict" in run(own / "splitattn", "--help", cwd=desk)
    arguments = ("predict", photograph, "--format", "json", "--topk", "1", "--engine", "torch")
    answer = json.loads(run(own / "splitattn", *arguments, cwd=desk, **offline))
    assert (answer["model"], answer["path"]) == ("resnest26_tiny", photograph)
    assert 0 < answer["predictions"][0]["probability"] <= 1
    verified = run(own / "splitattn", "weights", "verify", "resnest26_tiny", cwd=desk, **offline)
    assert ": ok, sha256 " in verified


@pytest.mark.parametrize("which", ["wheel", "wheel of the sdist"])
def test_built_packages_work_outside_the_checkout(
    built: dict[str, Path], which: str, tmp_path: Path
) -> None:
    """The environment uses the dependencies of this one, but not its splitattn."""
    environment, desk = tmp_path / "venv", tmp_path / "desk"
    desk.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = ("--python", python, "install", "--no-deps", "--no-index", "--no-cache-dir")
    pip(*install, built[which], cwd=desk)
    # Folders in a .pth file are searched last, and their own .pth files are ignored.
    (site,) = environment.rglob("site-packages")
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "lent.pth").write_text("\n".join(lent) + "\n", encoding="utf-8")
    passes_the_smoke_test(environment, desk)


@pytest.mark.slow  # minutes, gigabytes and the network: the dependencies come from the index
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("which", ["wheel", "sdist"])
def test_built_packages_work_in_a_clean_environment(
    built: dict[str, Path], which: str, tmp_path: Path
) -> None:
    environment, desk = tmp_path / "venv", tmp_path / "desk"
    desk.mkdir()
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(python, "-m", "pip", "install", "--no-cache-dir", built[which], cwd=desk)
    run(python, "-m", "pip", "check", cwd=desk)
    passes_the_smoke_test(environment, desk)


def test_minimum_versions_are_those_that_the_project_asks_for() -> None:
    extras = PROJECT["optional-dependencies"].values()
    asked = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    lines = (ROOT / "constraints" / "minimum.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line for line in lines if not line.startswith("#")]
    assert sorted(line.removesuffix(".*") for line in pinned) == sorted(
        {
            re.sub(r"\[.*?\]", "", line.partition(",")[0]).replace(">=", "==")
            for line in asked
            if not line.startswith("splitattn")
        }
    )


def test_the_scripts_import_only_what_the_project_asks_for() -> None:
    """Modules are compared with package names; Pillow, scikit-image and PyYAML are mapped."""
    called = {"PIL": "pillow", "skimage": "scikit-image", "yaml": "pyyaml"}
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    asked = {re.split(r"[\[>=]", line)[0].lower().replace("-", "_") for line in lines}
    scripts = list((ROOT / "scripts").glob("*.py"))
    known = {*asked, *sys.stdlib_module_names, *(path.stem for path in scripts), "tests"}
    for path in scripts:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                module = name.partition(".")[0]
                assert called.get(module, module).replace("-", "_") in known, f"{path}: {name}"
