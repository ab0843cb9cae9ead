"""scripts/embed_weights.py makes weights the embedded model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from embed_weights import embed

from splitattn.architectures import ARCHITECTURES
from splitattn.create import create_model
from splitattn.opening import open_weights
from splitattn.preprocessing import Preprocessing
from splitattn.weights.checkpoint import write_checkpoint
from splitattn.weights.download import file_sha256
from tests.training.runs import ARCHITECTURE


def test_half_precision_weights_get_their_metadata_and_run_in_single_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)
    network = create_model(ARCHITECTURE)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    write_checkpoint(tmp_path / "candidate.safetensors", halves)
    look, origin = Preprocessing(size=40, crop_fraction=1.0), {"teacher": "t", "data": "d"}
    path = embed(tmp_path / "candidate.safetensors", "small", look, origin, tmp_path)
    assert path.name == f"small-{file_sha256(path)[:8]}.safetensors"
    trained = open_weights(weights=path)
    metadata = trained.metadata
    assert (metadata.classes[387], metadata.preprocessing) == ("red panda", look)
    assert metadata.origin == origin
    assert trained.tensors["fc.weight"].dtype == np.float16
    assert trained.fold("branches").stem[0].weight.dtype == np.float32
    loaded = create_model("small", weights=path).eval()
    assert {v.dtype for v in loaded.parameters()} == {torch.float32}
    images = np.random.default_rng(0).normal(size=(2, 3, 40, 40)).astype(np.float32)
    logits = trained.load("onnxruntime", "cpu").logits(images)
    assert logits.dtype == np.float32
    with torch.no_grad():
        expected = loaded(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)

    write_checkpoint(
        tmp_path / "few.safetensors", create_model(ARCHITECTURE, num_classes=7).state_dict()
    )
    with pytest.raises(SystemExit, match="must have 1000 classes, got 7"):
        embed(tmp_path / "few.safetensors", "small", look, origin, tmp_path)
