"""A new engine is one module and one row; every verb that lists engines then lists it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from splitattn.engines import table
from splitattn.engines.table import EngineRow
from splitattn.errors import InputError, WeightsError
from splitattn.graph.onnx_model import OPSETS
from splitattn.images.samples import sample_photographs
from splitattn.transforms import transform
from splitattn.workflows import export

TOY = EngineRow(
    name="toy",
    module="tests.engines.toy",
    libraries=(),
    format="toy",
    suffix=".toy",
    precisions={"fp32": ()},
)
PHOTOGRAPH = sample_photographs()[0]


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ENGINES", (*table.ENGINES, TOY))


def test_names_and_files_are_unique() -> None:
    for values in (
        [row.name for row in table.ENGINES],
        [row.format for row in table.ENGINES if row.format],
        [row.suffix for row in table.ENGINES if row.suffix],
    ):
        assert len(values) == len(set(values))


def test_the_opsets_of_files_are_those_that_are_written() -> None:
    assert [row.opsets for row in table.ENGINES if row.opsets] == [OPSETS]


@pytest.mark.usefixtures("_toy")
def test_a_new_engine_labels_exports_and_reopens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from splitattn.classifier import Classifier
    from splitattn.cli import main

    expected = Classifier(engine="onnxruntime").predict(PHOTOGRAPH)
    assert Classifier(engine="toy").predict(PHOTOGRAPH) == expected
    path = tmp_path / "net.toy"
    with pytest.raises(InputError, match="class maps can be exported to openvino or onnx, got toy"):
        export(path, class_maps=True)
    report = export(path)
    assert (report.format, report.engine) == ("toy", "toy 1.0 on cpu")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["predict", str(PHOTOGRAPH), "--weights", str(path), "--format", "json"])
    answer = json.loads(capsys.readouterr().out)
    assert [guess["label"] for guess in answer["predictions"]] == [p.label for p in expected]
    with pytest.raises(WeightsError, match="pass the weights it was exported from"):
        transform("resnest26_tiny", weights=path)
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["predict", str(PHOTOGRAPH), "--engine", "steam"])
    assert "compile, toy, got 'steam'" in capsys.readouterr().err


HELP = """
import sys
from splitattn.engines import table
from tests.engines.test_table import TOY
table.ENGINES = (*table.ENGINES, TOY)
import splitattn.cli
splitattn.cli.main([sys.argv[1], "--help"])
"""


@pytest.mark.parametrize("verb", ["predict", "evaluate", "export"])
def test_help_lists_a_new_engine(verb: str) -> None:
    done = subprocess.run([sys.executable, "-c", HELP, verb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "toy" in done.stdout
