import json
import subprocess
import sys
from pathlib import Path

import pytest

from splitattn.classifier import Classifier
from splitattn.cli import main
from splitattn.exporting import ExportError
from splitattn.images.samples import sample_photographs
from tests.cli.networks import CLASSES, write_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = 0
    try:
        main(list(map(str, arguments)))
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def test_predict_needs_nothing_but_the_exported_file(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.xml"
    status, out, err = run(capsys, "export", "--weights", weights, path)
    assert (status, err) == (0, "writing\ncomparing probabilities\n")
    header, *rows, summary = out.splitlines()
    assert header.split()[:3] == ["batch", "pixels", "absolute"]
    assert [row.split()[0] for row in rows] == ["1", "4"]
    assert summary.startswith(f"{path}: resnest14 in fp32, ")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "net.bin",
        "net.xml",
        "net.xml.parity.json",
    ]

    photograph = sample_photographs()[0]
    call = ("predict", photograph, "--weights", path, "--format", "json", "--topk", len(CLASSES))
    status, out, err = run(capsys, *call)
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert (answer["model"], answer["weights"]) == ("resnest14", str(path))
    expected = Classifier(weights=weights, engine="torch").predict(photograph, topk=len(CLASSES))
    for got, wanted in zip(answer["predictions"], expected, strict=True):
        assert (got["label"], got["index"]) == (wanted.label, wanted.index)
        assert got["probability"] == pytest.approx(wanted.probability, abs=1e-5)


def test_a_failed_parity_is_reported_in_one_line_with_status_1(
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ExportError("net.xml was not written: it differs")

    monkeypatch.setattr("splitattn.workflows.export", fails)
    status, out, err = run(capsys, "export", "--weights", weights, tmp_path / "net.xml")
    assert (status, out, err) == (1, "", "error: net.xml was not written: it differs\n")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("net",), "an exported file must end in one of .xml, .onnx, .pt2, got net"),
        (("net.onnx", "--precision", "int8"), "int8 needs images to calibrate on"),
        (("net.onnx", "--format", "openvino"), "must end in .xml, got net.onnx"),
    ],
)
def test_a_wrong_call_is_reported_in_one_line_with_status_2_before_anything_is_loaded(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "export", "--weights", "missing.safetensors", *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_help_answers_without_torch() -> None:
    code = (
        "import sys, splitattn.cli\n"
        "try: splitattn.cli.main(['export', '--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--calibration" in done.stdout
    assert done.stdout.endswith("False\n")
