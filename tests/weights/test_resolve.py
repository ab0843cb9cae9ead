from pathlib import Path

import pytest
import torch

from splitattn.errors import InputError, WeightsError
from splitattn.preprocessing import center_crop
from splitattn.weights import cache as cache_module
from splitattn.weights import catalogue
from splitattn.weights.cache import identify, verify
from splitattn.weights.catalogue import CATALOGUE, WeightsEntry, find_entry
from splitattn.weights.checkpoint import read_checkpoint, write_checkpoint
from splitattn.weights.metadata import ModelMetadata, read_metadata
from splitattn.weights.resolve import ResolvedWeights, resolve
from tests.weights.conftest import BODY, Server, make_entry, sends

TENSORS = {"fc.bias": torch.zeros(2)}
METADATA = ModelMetadata(model="resnest26", classes=("cat", "dog"), preprocessing=center_crop(96))


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> WeightsEntry:
    """The entry of a catalogue in which resnest14 is the embedded model."""
    entry = make_entry(model="resnest14", tag="tiny", class_set="tiny_imagenet200")
    monkeypatch.setattr(cache_module, "__file__", str(tmp_path / "cache.py"))
    monkeypatch.setattr(
        catalogue, "CATALOGUE", (entry, *(other for other in CATALOGUE if other.urls))
    )
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / entry.filename).write_bytes(BODY)
    return entry


def test_the_embedded_weights_need_no_home_folder(
    embedded: WeightsEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for variable in ("SPLITATTN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert resolve("resnest14").tag == resolve("resnest14", "tiny").tag == embedded.tag


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    path = tmp_path / "bare.pth"
    torch.save(TENSORS, path)
    return path


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    path = tmp_path / "trained.safetensors"
    write_checkpoint(path, TENSORS, METADATA)
    return path


def refusal(model: str | None, weights: str | Path | None) -> str:
    with pytest.raises(WeightsError) as error:
        resolve(model, weights)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("model", "weights"),
    [(None, None), ("resnest14", None), ("resnest14", "tiny"), (None, "tiny")],
)
def test_the_embedded_model_needs_no_name(
    embedded: WeightsEntry, tmp_path: Path, model: str | None, weights: str | None
) -> None:
    assert resolve(model, weights) == ResolvedWeights(
        path=tmp_path / "embedded" / "weights.pth",
        model="resnest14",
        tag="tiny",
        classes=embedded.classes,
        preprocessing=embedded.preprocessing,
    )


def test_a_tag_is_fetched(server: Server, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    entry = make_entry(server.add("/a", sends(BODY)))
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    steps: list[int] = []
    resolved = resolve("resnest50", "test", progress=lambda done, _: steps.append(done))
    assert resolved.path == cache / "weights.pth"
    assert resolved.tag == "test"
    assert steps[-1] == len(BODY)


def test_a_tag_in_the_models_name_is_fetched(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = make_entry(tag="default")
    entry = make_entry(server.add("/a", sends(BODY)))
    monkeypatch.setattr(catalogue, "CATALOGUE", (default, entry))
    resolved = resolve("timm/resnest50d.test")
    assert (resolved.model, resolved.tag) == ("resnest50", "test")
    assert "no weights called 'tset'; did you mean 'test'?" in refusal("resnest50d.tset", None)


def test_a_file_is_its_models_whatever_the_model_is_called(trained: Path, bare: Path) -> None:
    for name in ("resnest26d", "timm/resnest26d.gluon_in1k"):
        assert resolve(name, trained).model == "resnest26"
        assert resolve(name, bare).model == "resnest26"
    assert "belongs to resnest26, not to resnest50" in refusal("resnest50d", trained)


def test_a_tag_of_several_models_needs_the_model() -> None:
    assert "name the model" in refusal(None, "in1k")


def test_a_trained_file_needs_nothing_else(trained: Path) -> None:
    expected = ResolvedWeights(
        path=trained,
        model="resnest26",
        tag=None,
        classes=("cat", "dog"),
        preprocessing=center_crop(96),
    )
    assert resolve(None, trained) == resolve("resnest26", str(trained)) == expected


def test_a_trained_file_of_another_model_is_refused(trained: Path) -> None:
    assert "belongs to resnest26, not to resnest50" in refusal("resnest50", trained)


def test_a_bare_file_takes_what_its_model_expects(bare: Path) -> None:
    resolved = resolve("resnest200", bare)
    assert resolved.classes is None
    assert resolved.preprocessing == find_entry("resnest200").preprocessing


def test_a_bare_file_needs_the_model(bare: Path) -> None:
    assert "name the model" in refusal(None, bare)


def test_an_unknown_tag_is_refused_with_the_nearest_one() -> None:
    assert (
        "'in1' is neither a tag of resnest50 nor a file or folder; did you mean 'in1k'?"
        in refusal("resnest50", "in1")
    )
    assert "of any model" in refusal(None, "missing.safetensors")
    assert "neither" in refusal("resnest152", "in1k")
    assert "neither" in refusal("resnest50", "x" * 5000)
    assert "neither" in refusal("resnest50", Path("in1k"))


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (
            ["checkpoints/epoch=3-step=9.ckpt"],
            r"name a file in it, such as .*epoch=3-step=9\.ckpt$",
        ),
        (
            [f"checkpoint-2/{name}" for name in ("optimizer.pt", "training_args.bin")]
            + ["checkpoint-2/model.safetensors"],
            r"name a file in it, such as .*checkpoint-2/model\.safetensors$",
        ),
        (["checkpoint-9.pth.tar", "args.yaml"], r"name a file in it, such as .*-9\.pth\.tar$"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            "in 2 files, such as model-00001-of-00002.safetensors; load them together and write",
        ),
    ],
    ids=["lightning", "trainer", "timm", "shards"],
)
def test_a_folder_whose_weights_have_other_names_says_which(
    tmp_path: Path, names: list[str], advice: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=advice):
        resolve("resnest14", tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert "must be a folder with model.safetensors" in refusal("resnest50", tmp_path)


def test_an_unknown_model_is_refused_whatever_the_weights(trained: Path, tmp_path: Path) -> None:
    for weights in (None, "in1k", trained):
        with pytest.raises(InputError, match="resnest51"):
            resolve("resnest51", weights)
    stranger = tmp_path / "stranger"
    metadata = ModelMetadata(model="resnest51", classes=(), preprocessing=center_crop(96))
    write_checkpoint(stranger, TENSORS, metadata)
    with pytest.raises(InputError, match="resnest51"):
        resolve(None, stranger)


def test_verifying_an_entry_tells_missing_from_wrong(cache: Path) -> None:
    entry = make_entry("https://weights.invalid/a")
    with pytest.raises(WeightsError, match="not on this machine"):
        verify(entry)
    cache.mkdir()
    (cache / "weights.pth").write_bytes(b"something else")
    with pytest.raises(WeightsError, match=f"begins {entry.sha256}"):
        verify(entry)
    (cache / "weights.pth").write_bytes(BODY)
    assert verify(entry).startswith(entry.sha256)


def test_a_file_is_identified_by_its_hash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bare: Path, cache: Path
) -> None:
    entry = make_entry("https://weights.invalid/a")
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    (tmp_path / "renamed").write_bytes(BODY)
    assert identify(tmp_path / "renamed") is entry
    # The damaged record of another file is not read.
    other = make_entry("https://weights.invalid/b", sha256="0" * 8, filename="other.pth")
    monkeypatch.setattr(catalogue, "CATALOGUE", (other, entry))
    cache.mkdir(exist_ok=True)
    (cache / "other.pth.sha256").write_bytes(b"")
    assert identify(tmp_path / "renamed") is entry
    with pytest.raises(WeightsError, match="matches no file of the catalogue"):
        identify(bare)
    with pytest.raises(WeightsError, match="No such file"):
        identify(tmp_path / "missing")


def test_a_published_file_brought_by_hand_is_known_by_its_hash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = make_entry("https://weights.invalid/a")
    monkeypatch.setattr(catalogue, "CATALOGUE", (entry,))
    path = tmp_path / "renamed.pth"
    path.write_bytes(BODY)
    for model in (None, entry.model):
        resolved = resolve(model, path)
        assert resolved.path == path
        assert (resolved.model, resolved.tag) == (entry.model, entry.tag)
        assert resolved.classes == entry.classes
        assert resolved.preprocessing == entry.preprocessing
    other = "resnest269" if entry.model != "resnest269" else "resnest14"
    assert f"belongs to {entry.model}, not to {other}" in refusal(other, path)


@pytest.mark.parametrize("name", ["net.onnx", "net.xml", "net.pt2"])
def test_an_exported_network_is_no_weights(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BODY)
    for model in (None, "resnest14"):
        assert "pass the weights it was exported from" in refusal(model, path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a training, with only its checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    content = {
        "model": {"fc.bias": torch.zeros(2)},
        "ema": {"fc.bias": torch.ones(2)},
        "optimizer": {"state": {}},
        "identity": {"recipe": {"epochs": 3}},
        "metadata": METADATA.to_json(),
    }
    torch.save(content, folder / "last.pt")
    return folder


def test_weights_of_an_unfinished_training_are_used_with_a_warning(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    resolve(None, run)
    resolve(None, run)
    write_checkpoint(run / "best.safetensors", TENSORS, METADATA)
    resolve(None, run)
    write_checkpoint(run / "model.safetensors", TENSORS, METADATA)
    resolve(None, run)
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "last.pt is used",
        "best.safetensors is used",
    ]


def test_a_trainings_folder_is_weights_the_best_file_first(run: Path) -> None:
    for name in ("last.pt", "best.safetensors", "model.safetensors"):
        if name != "last.pt":
            write_checkpoint(run / name, TENSORS, METADATA)
        resolved = resolve(weights=run)
        assert resolved.path == run / name
        assert (resolved.model, resolved.classes) == ("resnest26", ("cat", "dog"))
        assert resolve("resnest26", str(run)) == resolved
        assert read_metadata(run) == METADATA
    assert "belongs to resnest26, not to resnest50" in refusal("resnest50", run)


def test_a_trainings_checkpoint_is_weights_with_metadata(run: Path) -> None:
    path = run / "last.pt"
    resolved = resolve(None, path)
    assert resolved == ResolvedWeights(
        path=path,
        model="resnest26",
        tag=None,
        classes=("cat", "dog"),
        preprocessing=METADATA.preprocessing,
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint.metadata == read_metadata(path) == METADATA
    assert {key: value.tolist() for key, value in checkpoint.tensors.items()} == {
        "fc.bias": [1, 1]  # the values of the EMA
    }


def test_without_an_ema_a_trainings_checkpoint_gives_the_networks_weights(run: Path) -> None:
    content = torch.load(run / "last.pt", weights_only=True)
    del content["ema"]
    torch.save(content, run / "last.pt")
    assert read_checkpoint(run / "last.pt").tensors["fc.bias"].tolist() == [0, 0]


def test_a_trainings_checkpoint_without_metadata_needs_the_model(run: Path) -> None:
    path = run / "last.pt"
    torch.save(torch.load(path, weights_only=True) | {"metadata": None}, path)
    assert "name the model" in refusal(None, path)
    assert resolve("resnest26", path).classes is None
    torch.save(torch.load(path, weights_only=True) | {"metadata": "{}"}, path)
    assert "malformed metadata: 'model' is missing" in refusal("resnest26", path)
