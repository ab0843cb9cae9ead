"""`splitattn models` and `splitattn weights`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from splitattn.architectures import ARCHITECTURES, Architecture
from splitattn.cli import main, models, weights
from splitattn.nn.resnest import ResNeSt
from splitattn.weights import catalogue
from splitattn.weights.catalogue import CATALOGUE
from tests.weights.conftest import BODY, Server, make_entry, refuses, sends

models_app = typer.Typer()
models_app.command()(models.models)


def run(app: typer.Typer, *arguments: str):  # type: ignore[no-untyped-def]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


PLAIN_RESNET = Architecture(
    layers=(3, 4, 6, 3), radix=0, deep_stem=False, avg_down=False, avd=False
)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES.values(), PLAIN_RESNET])
def test_parameters_are_counted_as_the_network_has_them(architecture: Architecture) -> None:
    with torch.device("meta"):
        network = ResNeSt(architecture, num_classes=10)
    built = sum(parameter.numel() for parameter in network.parameters())
    assert architecture.parameters(num_classes=10) == built


def test_models_lists_every_model_with_its_parameters() -> None:
    result = run(models_app)
    assert result.exit_code == 0
    for name in ARCHITECTURES:
        assert name in result.stdout
    assert "27,483,240" in result.stdout


def test_models_as_json() -> None:
    rows = {row["model"]: row for row in json.loads(run(models_app, "--json").stdout)}
    assert list(rows) == list(ARCHITECTURES)
    row = rows["resnest50"]
    assert (row["layers"], row["radix"], row["parameters"]) == ([3, 4, 6, 3], 2, 27_483_240)
    assert row["weights"][0]["tag"] == "in1k"
    assert row["weights"][0]["published"]["top1"] == 81.03


def test_weights_lists_every_entry() -> None:
    result = run(weights.app)
    assert result.exit_code == 0
    for entry in CATALOGUE:
        assert entry.name in result.stdout
    rows = json.loads(run(weights.app, "--json").stdout)
    assert [row["filename"] for row in rows] == [entry.filename for entry in CATALOGUE]


def test_weights_are_listed_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    for variable in ("SPLITATTN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    rows = json.loads(run(weights.app, "--json").stdout)
    assert {row["where"] for row in rows} == {"embedded", "to download"}


@pytest.mark.parametrize("arguments", [["models"], ["weights"], ["weights", "verify", "resnest50"]])
def test_tables_are_shown_without_torch(arguments: list[str]) -> None:
    script = (
        "import sys; from splitattn.cli import create_app;"
        "create_app()(sys.argv[1:], standalone_mode=False);"
        "sys.exit(sorted({'torch', 'torchvision', 'numpy'} & set(sys.modules)) != [])"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "error" not in done.stderr or arguments[1:2] == ["verify"]
    assert done.returncode == 0, done


@pytest.fixture
def catalogue_of_three(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    served = make_entry(server.add("/a", sends(BODY)), filename="a.pth")
    refused = make_entry(server.add("/b", refuses(404)), model="resnest101", filename="b.pth")
    other = make_entry(server.add("/a", sends(BODY)), tag="other", filename="c.pth")
    monkeypatch.setattr(catalogue, "CATALOGUE", (served, refused, other))


@pytest.mark.usefixtures("catalogue_of_three")
def test_fetch_prints_paths_and_answers_all_even_if_one_fails(cache: Path) -> None:
    result = run(weights.app, "fetch", "resnest50", "resnest101", "resnest50:other")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [str(cache / "a.pth"), str(cache / "c.pth")]
    assert "HTTP 404" in result.stderr
    for name in ("resnest50:test", "timm/resnest50d.test", "resnest50d"):
        assert run(weights.app, "fetch", name).stdout == f"{cache / 'a.pth'}\n"
        assert run(weights.app, "verify", name).stdout.startswith("resnest50:test: ok")


@pytest.mark.usefixtures("catalogue_of_three")
def test_verify_answers_all_even_if_one_is_wrong(cache: Path, tmp_path: Path) -> None:
    run(weights.app, "fetch", "resnest50", "resnest50:other")
    (cache / "a.pth").write_bytes(b"damaged")
    copy = tmp_path / "copy"
    copy.write_bytes(BODY)
    result = run(
        weights.app,
        "verify",
        "resnest50",
        "resnest101",
        "missing.pth",
        "resnest50:other",
        str(copy),
    )
    assert result.exit_code == 1
    wrong, absent, missing = result.stderr.splitlines()
    assert "a.pth has" in wrong
    assert "resnest101:test is not on this machine" in absent
    assert absent.endswith("get it with splitattn weights fetch resnest101:test")
    assert "missing.pth" in missing
    good, copied = result.stdout.splitlines()
    assert good.startswith("resnest50:other: ok")
    assert copied.startswith(f"{copy}: ok")
    assert run(weights.app, "verify", str(copy)).exit_code == 0
    assert run(weights.app, "verify").exit_code == 2


@pytest.mark.usefixtures("catalogue_of_three")
@pytest.mark.parametrize("name", ["x" * 300 + ".pth", "line\nbreak.pth", "\udcff.pth"])
def test_verify_answers_to_any_name_in_one_line(name: str) -> None:
    result = run(weights.app, "verify", name)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.isprintable()


@pytest.mark.usefixtures("catalogue_of_three")
@pytest.mark.parametrize("verb", ["verify", "fetch"])
@pytest.mark.parametrize("wrong", ["nothing", "resnest50:nothing", "x" * 300])
def test_a_wrong_name_is_a_wrong_call_before_anything_is_fetched(
    verb: str, wrong: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["weights", verb, "resnest50", wrong])
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"error: .*'{wrong.partition(':')[2] or wrong[:30]}.*\n", err), err
    assert not (cache / "a.pth").exists()


@pytest.mark.usefixtures("catalogue_of_three")
def test_verify_and_card_know_files_and_entries_by_the_same_rule(tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(BODY)
    run(weights.app, "fetch", "resnest50")
    for name in ("timm/resnest50d.test", "resnest50:test", "resnest50d", str(tmp_path / "copy")):
        for verb in ("verify", "card"):
            done = run(weights.app, verb, name)
            assert done.exit_code == 0, (verb, name)
            assert "resnest50" in done.stdout


@pytest.mark.parametrize(
    "name", ["x" * 300, "x" * 300 + ".pth", "nothing.pth", "resnest50.nothing"]
)
def test_card_answers_to_any_name_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["weights", "card", name])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
