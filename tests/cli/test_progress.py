"""Bars are for people who watch; logs get lines."""

import pytest

from splitattn.cli.progress import downloading, training_progress
from splitattn.training.task import Epoch, Figure, Step


@pytest.mark.parametrize("forced", [False, True])
def test_a_log_gets_a_line_for_each_epoch_and_no_bar(
    forced: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the environment asks for colors, as notebooks and continuous integration do."""
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    step = Step(
        epoch=0,
        epochs=2,
        step=0,
        steps=1,
        figures={"loss": 1.5},
        formats={"loss": Figure(label="loss")},
        learning_rate=0.1,
        examples=2,
        unit="images",
        seconds=0.5,
    )
    with training_progress() as (on_step, on_epoch):
        on_step(step)
        on_epoch(Epoch(epoch=0, epochs=2, line={"seconds": 3.0}, text="loss 1.500  AP 0.25"))
    assert capsys.readouterr().err == "epoch 1/2  loss 1.500  AP 0.25  3 s\n"
    with downloading() as progress:
        progress(1, 2)
    assert capsys.readouterr().err == ""
