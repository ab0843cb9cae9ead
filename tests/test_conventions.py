"""Rules for the package's code that no other tool checks (docs/architecture.md)."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import stat
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import readme_tables

import splitattn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "splitattn"
# The wheel may hold 20 MB of weights; everything else in the package is text.
MAX_WEIGHTS = 24_000_000
MAX_TEXT = 100_000


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_go_one_way() -> None:
    run(Path(sys.executable).with_name("lint-imports"), "--no-cache")


def test_readme_tables_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["readme_tables.py", "--check"])
    readme_tables.main()


def package_files() -> Iterator[Path]:
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def test_files_of_the_package_are_plain_and_small() -> None:
    for path in package_files():
        assert not path.stat().st_mode & stat.S_IXUSR, f"{path} is executable"
        assert path.suffix == ".safetensors" or path.stat().st_size <= MAX_TEXT, f"{path} is big"
    weights = sum(path.stat().st_size for path in package_files() if path.suffix == ".safetensors")
    assert weights <= MAX_WEIGHTS


def test_lazy_names_are_those_that_type_checkers_see() -> None:
    """The imports for type checkers and the table of lazy imports must agree."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module.removeprefix("splitattn.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("splitattn.")
        for alias in node.names
    }
    assert seen == splitattn._HOMES
    assert splitattn.__all__ == sorted(seen)


@pytest.mark.parametrize("name", splitattn.__all__)
def test_public_names_are_documented(name: str) -> None:
    documentation = getattr(splitattn, name).__doc__ or ""
    assert documentation.strip()
    # Without a docstring, dataclasses writes the signature.
    assert not documentation.startswith(f"{name}(")


def test_types_of_public_functions_can_be_read() -> None:
    """Libraries that make forms or command lines of functions read them as they run."""
    functions = [getattr(splitattn, name) for name in splitattn.__all__]
    assert all(typing.get_type_hints(each) for each in functions if inspect.isfunction(each))


def public_dataclasses() -> Iterator[type]:
    for module in pkgutil.walk_packages([str(PACKAGE)], "splitattn."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            own = kind.__module__ == module.name and not kind.__name__.startswith("_")
            if own and dataclasses.is_dataclass(kind):
                yield kind


def test_public_dataclasses_are_frozen_and_keyword_only() -> None:
    found = {kind.__name__: kind for kind in public_dataclasses()}
    assert {"Architecture", "Recipe", "WeightsEntry"} <= set(found)
    del found["State"]  # the state of a training, which changes
    for kind in found.values():
        assert kind.__dataclass_params__.frozen, kind  # type: ignore[attr-defined]
        assert all(field.kw_only for field in dataclasses.fields(kind)), kind
