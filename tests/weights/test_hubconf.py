"""The entry points for torch.hub, from a clone on the disk."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splitattn.architectures import ARCHITECTURES
from splitattn.create import create_model
from splitattn.nn.resnest import ResNeSt
from splitattn.weights import catalogue
from splitattn.weights.catalogue import embedded_entry
from splitattn.weights.checkpoint import write_checkpoint
from tests.weights.conftest import Server, make_entry, refuses, sends

ROOT = Path(__file__).parents[2]

# Simulates that splitattn is not installed: it is found only in the clone.
SCRIPT = """
import json, sys
from importlib.machinery import PathFinder
from importlib.util import find_spec

class OnlyTheClone(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "splitattn":
            path = [entry for entry in sys.path if entry.startswith(sys.argv[1])]
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = OnlyTheClone
assert find_spec("splitattn") is None
import torch
torch.hub.set_dir(sys.argv[1])
repository = "owner/clone:main"
documentation = {
    name: torch.hub.help(repository, name, trust_repo=True)
    for name in torch.hub.list(repository, trust_repo=True)
}
model = torch.hub.load(repository, "resnest26_tiny", pretrained=True, trust_repo=True)
import splitattn
print(json.dumps([documentation, splitattn.__file__, model.num_classes, model.training]))
"""


@pytest.fixture(scope="module")
def official() -> ResNeSt:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("resnest14", num_classes=7)


def load(name: str, **arguments: object) -> ResNeSt:
    model = torch.hub.load(str(ROOT), name, source="local", **arguments)
    assert isinstance(model, ResNeSt)
    return model


def test_a_clone_works_where_nothing_is_installed_and_there_is_no_network(tmp_path: Path) -> None:
    # torch.hub caches repositories under such names, and requests nothing if they are there.
    clone = tmp_path / "owner_clone_main"
    clone.mkdir()
    (clone / "hubconf.py").write_bytes((ROOT / "hubconf.py").read_bytes())
    (clone / "src").symlink_to(ROOT / "src")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path],
        env=environment | {"SPLITATTN_OFFLINE": "1", "SPLITATTN_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    documentation, home, classes, training = json.loads(done.stdout)
    assert set(documentation) == set(ARCHITECTURES)
    for name, text in documentation.items():
        assert text.startswith(f"{name}, a ResNeSt with ")
    assert Path(home).is_relative_to(clone)
    assert (classes, training) == (len(embedded_entry().classes), True)


def test_arguments_are_those_of_create_model() -> None:
    model = load("resnest14", num_classes=5, in_chans=1, output_stride=16, dropout=0.5)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)
    assert load("resnest14").num_classes == 1000
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        load("resnest14", numclasses=5)


def test_arguments_begin_with_pretrained_and_the_rest_is_create_models() -> None:
    import hubconf

    for name in ARCHITECTURES:
        entry = getattr(hubconf, name)
        parameters = inspect.signature(entry).parameters
        assert entry.__name__ == name
        assert list(parameters)[:2] == ["pretrained", "progress"]
        created = inspect.signature(create_model).parameters
        assert set(parameters) - {"pretrained", "progress"} == set(created) - {"model", "weights"}
        for parameter in set(parameters) & set(created):
            assert parameters[parameter].default == created[parameter].default


def test_pretrained_weights_come_verified_from_a_mirror_once(
    server: Server,
    cache: Path,
    official: ResNeSt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_checkpoint(tmp_path / "published", official.state_dict())
    body = (tmp_path / "published").read_bytes()
    server.add("/releases/weights.pth", sends(body))
    monkeypatch.setenv("SPLITATTN_MIRROR", server.url)
    entry = make_entry("https://weights.invalid/releases/weights.pth", body=body, model="resnest14")
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    model = load("resnest14", pretrained=True)
    assert torch.equal(model.fc.weight, official.fc.weight)
    assert (cache / "weights.pth").is_file()
    server.add("/releases/weights.pth", refuses(404))
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    assert load("resnest14", pretrained=True, num_classes=3).num_classes == 3
    assert len(server.requests) == 1
    assert capsys.readouterr().err == ""  # progress bars are for terminals
