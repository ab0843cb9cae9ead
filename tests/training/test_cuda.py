"""On a GPU a training learns, resumes, and does not wait for the figures of a step."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from splitattn.training.loop import train
from splitattn.training.task import Step
from tests.training.runs import make_run, make_task, network, with_recipe

pytestmark = pytest.mark.gpu


@pytest.fixture
def unsynchronized() -> Iterator[None]:
    """After the test, allow calls that wait for the GPU; the test makes them an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_on_a_gpu_resumes_from_where_it_stopped(tmp_path: Path, precision: str) -> None:
    run = replace(make_run(tmp_path), device=torch.device("cuda"))
    run = with_recipe(run, precision=precision, learning_rate=0.1, epochs=4)

    class StopError(Exception):
        pass

    def stop(step: Step) -> None:
        if step.step == 9:
            raise StopError

    with pytest.raises(StopError):
        train(network(), make_task(tmp_path), replace(run, checkpoint_minutes=0.0), on_step=stop)
    seen: list[Step] = []
    measured = train(network(), make_task(tmp_path), run, resume=True, on_step=seen.append)
    assert [step.step for step in seen] == list(range(seen[0].step, 24))
    assert 6 <= seen[0].step <= 9
    assert measured.details.n == 12
    assert (run.output / "model.safetensors").exists()


@pytest.mark.usefixtures("unsynchronized")
def test_a_step_does_not_wait_for_the_gpu(tmp_path: Path) -> None:
    run = replace(make_run(tmp_path), device=torch.device("cuda"))
    run = with_recipe(run, epochs=2, clip_norm=0.0, mixup_alpha=0.2, cutmix_alpha=0.0)

    def watch(step: Step) -> None:
        # Waiting is an error from the third step, after all allocations, to the end of the epoch.
        per_epoch = step.steps // step.epochs
        inside = 2 <= step.step % per_epoch < per_epoch - 2
        torch.cuda.set_sync_debug_mode("error" if inside else "default")

    train(network(), make_task(tmp_path), run, on_step=watch)
