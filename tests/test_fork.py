"""A process that is forked after PyTorch's threads have worked can use PyTorch too."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from splitattn.classifier import Classifier
from splitattn.create import create_model
from splitattn.training.loop import train
from tests.cli.networks import write_weights
from tests.training.runs import ARCHITECTURE, RECIPE, make_run, make_task, network

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


RECIPE = replace(RECIPE, epochs=1, warmup_epochs=0.0)


@pytest.fixture(scope="module")
def used(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Classifier]:
    """A classifier for whose prediction several threads have worked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    engine = getattr(request, "param", "torch")
    classifier = open_new(tmp_path_factory.mktemp("weights"), engine)
    classifier.predict([IMAGE] * 4)
    yield classifier
    torch.set_num_threads(threads)


def open_new(folder: Path, engine: str) -> Classifier:
    weights = write_weights(folder / "small.safetensors")
    return Classifier(weights=weights, device="cpu", engine=engine)


def labels(classifier: Classifier) -> list[str]:
    return [best.label for best, *_ in classifier.predict([IMAGE] * 4)]


def shape_anew() -> tuple[int, ...]:
    return tuple(create_model(ARCHITECTURE, num_classes=3)(torch.ones(4, 3, 64, 64)).shape)


def train_anew(folder: Path) -> bool:
    train(network(RECIPE), make_task(folder), make_run(folder, RECIPE))
    return (folder / "out" / "model.safetensors").exists()


def in_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process that has twenty seconds."""
    context = get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(work()))
    process.start()
    theirs.close()  # so that an error in the process ends the wait
    try:
        assert ours.poll(20), "the forked process hangs"
        return ours.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("used", "engine"), [(e, e) for e in ("onnxruntime", "openvino", "torch")], indirect=["used"]
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_after_its_parent_has_predicted_a_forked_process_can_do_so_too(
    used: Classifier, engine: str, tmp_path: Path
) -> None:
    expected = labels(used)
    assert in_fork(lambda: labels(open_new(tmp_path, engine))) == expected
    assert in_fork(lambda: labels(used)) == expected
    assert labels(used) == expected


def predict_and_train_in_fork(folder: Path) -> tuple[tuple[int, ...], bool]:
    torch.set_num_threads(3)
    open_new(folder, "torch").predict([IMAGE] * 4)
    return in_fork(shape_anew), in_fork(lambda: train_anew(folder))


def test_after_its_parent_has_predicted_a_forked_process_can_train(tmp_path: Path) -> None:
    # In a new process: some tests start autograd's own threads, after which no fork may train.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        shape, trained = pool.submit(predict_and_train_in_fork, tmp_path).result(60)
    assert shape == (4, 3)
    assert trained


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_predicts_with_as_many_threads(used: Classifier) -> None:
    assert in_fork(lambda: (labels(used), torch.get_num_threads())[1]) == 3
