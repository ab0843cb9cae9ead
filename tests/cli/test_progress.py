"""Bars are for people who watch; logs get lines."""

import pytest

from splitattn.cli.progress import downloading, training_progress
from splitattn.training.loop import Progress


@pytest.mark.parametrize("forced", [False, True])
def test_a_log_gets_a_line_for_each_epoch_and_no_bar(
    forced: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the environment asks for colors, as notebooks and continuous integration do."""
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    figures = {"train_loss": 1.5, "val_loss": 1.25, "val_top1": 50.0, "val_top5": 90.0}
    step = Progress(
        epoch=0, step=0, steps=1, loss=1.5, top1=50.0, learning_rate=0.1, images=2, seconds=0.5
    )
    with training_progress(2) as (on_step, on_epoch):
        on_step(step)
        on_epoch({"epoch": 0, "size": 64, "seconds": 3.0, **figures})
    assert capsys.readouterr().err == (
        "epoch 1/2  64 px  loss 1.500  val loss 1.250  top-1 50.00 %  top-5 90.00 %  3 s\n"
    )
    with downloading() as progress:
        progress(1, 2)
    assert capsys.readouterr().err == ""
