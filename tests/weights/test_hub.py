"""Repositories of a hub are fetched, cached, refused and pushed to, on a local server."""

import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save

from splitattn import libraries
from splitattn.errors import InputError, WeightsError
from splitattn.preprocessing import center_crop
from splitattn.weights import hub as hub_module
from splitattn.weights.hub import CARD_MARK, Repository, fetch_repository, is_reference, push
from splitattn.weights.metadata import ModelMetadata
from splitattn.weights.resolve import resolve
from splitattn.weights.timm_config import to_config
from tests.hub_server import Hub, commit_of, stop_server

METADATA = ModelMetadata(model="resnest14", classes=("cat", "dog"), preprocessing=center_crop(96))
CONFIG = to_config(METADATA).encode()
WEIGHTS = save({"fc.bias": torch.zeros(2)})
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"# cats"}
CATS = Repository(id="owner/cats")


def refusal(repository: Repository) -> str:
    with pytest.raises(WeightsError) as error:
        fetch_repository(repository)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_references_begin_as_in_timm() -> None:
    assert all(map(is_reference, ("hf-hub:owner/name", "hf_hub:owner/name", "local-dir:/a")))
    assert not any(map(is_reference, ("resnest50", "owner/name", "/a/hf-hub:b")))


def test_a_repository_may_name_a_revision() -> None:
    assert Repository.parse("owner/name") == Repository(id="owner/name")
    assert Repository.parse("o/n@refs/pr/1") == Repository(id="o/n", revision="refs/pr/1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "a/b/c",
        "owner/",
        "../name",
        "o/n@",
        "o/n@../../etc",
        "o/n@/etc",
        "o/n\n",
    ],
)
def test_names_that_are_not_repositories_are_refused(text: str) -> None:
    with pytest.raises(WeightsError, match="must be owner/name or owner/name@revision"):
        Repository.parse(text)


def test_a_repository_is_downloaded_once_and_only_what_is_needed(hub: Hub) -> None:
    hub.add("owner/cats", FILES)
    received: list[tuple[int, int | None]] = []
    folder = fetch_repository(CATS, progress=lambda *step: received.append(step))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == CONFIG
    assert hub.cache in folder.parents
    assert received[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert fetch_repository(CATS) == folder
    asked = [request for request in hub.requests if request.startswith("GET")]
    commit = commit_of(FILES)
    assert asked == [
        "GET /owner/cats/resolve/main/config.json",
        f"GET /owner/cats/resolve/{commit}/model.safetensors",
    ]


def test_a_repository_says_which_model_it_is(hub: Hub) -> None:
    hub.add("owner/cats", FILES)
    for name in ("hf-hub:owner/cats", "hf_hub:owner/cats"):
        for arguments in ((name,), (None, name), ("resnest14", name)):
            resolved = resolve(*arguments)
            assert (resolved.model, resolved.classes) == ("resnest14", ("cat", "dog"))
            assert resolved.preprocessing.size == 96
            assert resolved.tag == name
    with pytest.raises(WeightsError, match="belongs to resnest14, not to resnest26"):
        resolve("resnest26", "hf-hub:owner/cats")
    with pytest.raises(WeightsError, match="names weights already, got 'in1k' too"):
        resolve("hf-hub:owner/cats", "in1k")


def test_a_revision_is_a_branch_or_a_commit(hub: Hub) -> None:
    other = FILES | {"model.safetensors": save({"fc.bias": torch.ones(2)})}
    hub.add("owner/cats", FILES)
    hub.add("owner/cats", other, "v2")
    for revision, files in (("v2", other), (commit_of(FILES), FILES), ("main", FILES)):
        folder = fetch_repository(Repository.parse(f"owner/cats@{revision}"))
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"]
    message = refusal(Repository.parse("owner/cats@v3"))
    assert message == ("owner/cats has no revision 'v3'; name a branch, a tag or a commit of it")


def test_a_new_commit_is_noticed(hub: Hub) -> None:
    hub.add("owner/cats", FILES)
    fetch_repository(CATS)
    newer = FILES | {"config.json": to_config(METADATA, license="MIT").encode()}
    hub.add("owner/cats", newer)
    assert (fetch_repository(CATS) / "config.json").read_bytes() == newer["config.json"]


def test_safetensors_are_preferred_and_a_checkpoint_will_do(hub: Hub) -> None:
    hub.add("owner/cats", FILES | {"pytorch_model.bin": b"pickle"})
    assert not (fetch_repository(CATS) / "pytorch_model.bin").exists()
    hub.add("owner/old", {"config.json": CONFIG, "pytorch_model.bin": b"pickle"})
    assert (fetch_repository(Repository(id="owner/old")) / "pytorch_model.bin").exists()


def test_weights_with_metadata_need_no_config(hub: Hub) -> None:
    described = save({"fc.bias": torch.zeros(2)}, {"splitattn": METADATA.to_json()})
    hub.add("owner/cats", {"model.safetensors": described})
    assert resolve("hf-hub:owner/cats").classes == METADATA.classes
    # Metadata in the weights replace the config, which is for timm.
    hub.add("owner/cats", {"model.safetensors": described, "config.json": CONFIG})
    assert resolve("hf-hub:owner/cats").preprocessing == METADATA.preprocessing


def test_another_family_of_networks_is_refused_before_its_weights_are_downloaded(hub: Hub) -> None:
    hub.add("owner/vit", FILES | {"config.json": b'{"architectures": ["ViT"]}'})
    assert "'architecture' is missing" in refusal(Repository(id="owner/vit"))
    assert not any("safetensors" in request for request in hub.requests)


def test_refusals_are_reported_in_one_line(hub: Hub) -> None:
    hub.add("owner/cats", {"README.md": b"# cats"})
    hub.gated.add("owner/gated")
    assert "must hold model.safetensors or pytorch_model.bin" in refusal(CATS)
    assert "does not exist or is private" in refusal(Repository(id="owner/dogs"))
    assert "accept its terms" in refusal(Repository(id="owner/gated"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_with_another_hash_is_never_handed_out(hub: Hub, name: str) -> None:
    hub.add("owner/cats", FILES)
    hub.damaged.add(name)
    for _ in range(2):
        assert f"sent a {name} that does not have its hash" in refusal(CATS)
    hub.damaged.clear()
    assert (fetch_repository(CATS) / name).read_bytes() == FILES[name]


def test_offline_the_cache_is_used_without_requests(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.add("owner/cats", FILES)
    folder = fetch_repository(CATS)
    hub.requests.clear()
    # The default, with which huggingface_hub requests more than files.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    assert fetch_repository(CATS) == folder
    assert fetch_repository(Repository(id=CATS.id, revision=commit_of(FILES))) == folder
    assert "SPLITATTN_OFFLINE forbids" in refusal(Repository(id="owner/dogs"))
    assert "SPLITATTN_OFFLINE forbids" in refusal(Repository(id="owner/cats", revision="v2"))
    with pytest.raises(WeightsError, match="SPLITATTN_OFFLINE forbids pushing"):
        push_files(folder)
    assert hub.requests == []
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(WEIGHTS[:-1] + b"?")
    assert "is damaged" in refusal(CATS)


def test_without_a_server_the_cache_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("owner/cats", FILES)
    folder = fetch_repository(CATS)
    stop_server(hub, monkeypatch)
    assert fetch_repository(CATS) == folder
    assert "its server cannot be reached" in refusal(Repository(id="owner/dogs"))


def test_a_server_that_does_not_answer_is_given_up_within_seconds(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.add("owner/cats", FILES)
    folder = fetch_repository(CATS)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and sends nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.url, url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.2")
        started = time.monotonic()
        assert fetch_repository(CATS) == folder
        assert "its server cannot be reached" in refusal(Repository(id="owner/dogs"))
        assert time.monotonic() - started < 4


def test_a_download_that_stands_still_is_given_up_within_seconds(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/cats", FILES)
    over = threading.Event()
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: over.wait(20))
    monkeypatch.setattr(hub_module, "PATIENCE", 0.2)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.2")
    started = time.monotonic()
    assert refusal(CATS).startswith("owner/cats: too slow, 0 bytes in ")
    assert time.monotonic() - started < 4
    over.set()


@pytest.mark.parametrize("allowed", ["answer", "body"])
def test_a_slow_download_has_time_for_its_answer_and_for_its_bytes(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    from huggingface_hub import hf_hub_download

    hub.add("owner/cats", FILES)
    monkeypatch.setattr(hub_module, "PATIENCE", 0.01)
    if allowed == "answer":
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "20")
    else:
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
        monkeypatch.setattr(hub_module, "SLOWEST", len(min(FILES.values(), key=len)) / 20)

    def later(*arguments: Any, **options: Any) -> str:
        time.sleep(1.2)
        return str(hf_hub_download(*arguments, **options))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", later)
    assert fetch_repository(CATS).is_dir()


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf"])
def test_the_time_for_an_answer_is_a_number(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    hub.add("owner/cats", FILES)
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", seconds)
    expected = f"HF_HUB_ETAG_TIMEOUT must be a number of seconds, got '{seconds}'"
    assert refusal(CATS) == expected


def test_a_file_that_is_too_large_is_refused_before_it_is_downloaded(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/cats", FILES)
    monkeypatch.setattr(hub_module, "_MOST_BYTES", {"config.json": 10})
    assert "config.json of owner/cats must have at most 10 bytes, it has more" in refusal(CATS)
    monkeypatch.setattr(hub_module, "_MOST_BYTES", {})
    monkeypatch.setattr(hub_module, "_MOST_WEIGHTS_BYTES", len(CONFIG))
    large = FILES | {"model.safetensors": bytes(len(CONFIG) + 1)}
    hub.add("owner/cats", large)
    assert "model.safetensors of owner/cats@" in refusal(CATS)
    assert not any(r.startswith("GET") and "safetensors" in r for r in hub.requests)


def test_no_more_than_the_limit_is_received_if_the_size_is_unknown(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/cats", FILES)
    monkeypatch.setattr(hub_module, "_metadata", lambda *_, **__: SimpleNamespace(size=None))
    monkeypatch.setattr(hub_module, "_MOST_BYTES", {"config.json": 10})
    assert "config.json of owner/cats must have at most 10 bytes, it has more" in refusal(CATS)
    assert any(request.startswith("GET") for request in hub.requests)


def test_without_a_server_a_repository_without_a_config_is_used_too(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = save({"fc.bias": torch.zeros(2)}, {"splitattn": METADATA.to_json()})
    hub.add("owner/cats", {"model.safetensors": described})
    folder = fetch_repository(CATS)
    stop_server(hub, monkeypatch)
    assert fetch_repository(CATS) == folder
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    assert fetch_repository(CATS) == folder


def test_a_cache_without_links_is_verified_as_long_as_there_is_a_server(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError("this file system has no links")

    monkeypatch.setattr("os.symlink", no_links)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_SYMLINKS_WARNING", True)
    hub.add("owner/cats", FILES)
    for name in ("config.json", "model.safetensors"):
        hub.damaged = {name}
        assert f"sent a {name} that does not have its hash" in refusal(CATS)
    hub.damaged.clear()
    folder = fetch_repository(CATS)
    weights = folder / "model.safetensors"
    assert not weights.is_symlink()
    assert weights.read_bytes() == WEIGHTS
    weights.write_bytes(WEIGHTS[:-1] + b"?")
    assert fetch_repository(CATS) == folder
    assert weights.read_bytes() == WEIGHTS
    assert not caplog.records
    unverified = [
        f"{folder / name} is not verified: neither the cache nor a server has its hash"
        for name in ("config.json", "model.safetensors")
    ]
    stop_server(hub, monkeypatch)
    assert fetch_repository(CATS) == folder
    assert [record.message for record in caplog.records if record.name.startswith("splitattn")] == (
        unverified
    )
    caplog.clear()
    monkeypatch.setenv("SPLITATTN_OFFLINE", "1")
    assert fetch_repository(CATS) == folder
    assert [record.message for record in caplog.records] == unverified


def test_a_clone_that_is_not_installed_downloads_too(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    def version(name: str) -> str:
        if name == "splitattn":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    known = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    hub.add("owner/cats", FILES)
    assert (fetch_repository(CATS) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(libraries, "installed", lambda *_: False)
    with pytest.raises(InputError, match=r"needs huggingface_hub, .*pip install huggingface_hub"):
        resolve("hf-hub:owner/cats")


def push_files(folder: Path, repository: Repository = CATS, *, token: str | None = None) -> str:
    return push(folder, repository, message="Add cats", private=False, create_pr=False, token=token)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "cats"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_push_is_one_commit_with_all_files(hub: Hub, folder: Path) -> None:
    url = push_files(folder, token="secret")
    assert url == f"{hub.url}/owner/cats/commit/{commit_of(FILES)}"
    (lines,) = hub.pushes
    assert lines[0]["value"]["summary"] == "Add cats"
    assert {line["key"] for line in lines[1:]} == {"file"}
    assert hub.repositories["owner/cats"]["main"] == FILES
    assert set(hub.tokens) == {"Bearer secret"}
    assert (fetch_repository(CATS) / "model.safetensors").read_bytes() == WEIGHTS


def test_without_a_server_a_push_says_what_to_check(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_server(hub, monkeypatch)
    with pytest.raises(WeightsError, match=r"cats: its server cannot be reached \(.*HF_ENDPOINT"):
        push_files(folder)


def test_a_push_leaves_a_card_that_is_there(hub: Hub, folder: Path) -> None:
    hub.add("owner/cats", {"README.md": b"# written by hand"})
    push_files(folder)
    assert hub.repositories["owner/cats"]["main"] == FILES | {"README.md": b"# written by hand"}


def test_a_push_replaces_a_card_that_was_made_here(hub: Hub, folder: Path) -> None:
    """An old card would show old figures."""
    hub.add("owner/cats", {"README.md": f"# old\n\n{CARD_MARK}\n\nfigures".encode()})
    push_files(folder, token="secret")
    assert hub.repositories["owner/cats"]["main"] == FILES
    assert set(hub.tokens) == {"Bearer secret"}


def test_a_push_can_be_private_and_a_proposal(hub: Hub, folder: Path) -> None:
    message = {"message": "Add cats", "token": None}
    url = push(folder, CATS, private=True, create_pr=True, **message)  # type: ignore[arg-type]
    assert hub.private == {"owner/cats"}
    assert hub.proposals == [FILES]
    assert hub.repositories["owner/cats"]["main"] == {}
    assert url == f"{hub.url}/owner/cats/commit/{commit_of(FILES)}"
    push(folder, Repository(id="o/open"), private=False, create_pr=False, **message)  # type: ignore[arg-type]
    assert hub.private == {"owner/cats"}
    assert hub.proposals == [FILES]


def test_a_push_to_a_branch_that_is_not_there_is_refused(hub: Hub, folder: Path) -> None:
    with pytest.raises(WeightsError, match="owner/cats has no revision 'v2'"):
        push_files(folder, Repository(id="owner/cats", revision="v2"))
    assert hub.pushes == []


def test_a_link_in_a_local_folder_is_not_taken_for_one_of_the_cache(folder: Path) -> None:
    blob = folder / ("0" * 64)
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert json.loads((folder / "config.json").read_bytes())["architecture"] == "resnest14d"
    assert resolve(f"local-dir:{folder}").model == resolve(weights=folder).model == "resnest14"
