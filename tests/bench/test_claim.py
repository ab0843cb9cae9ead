"""benchmarks/claim.py at its smallest scale: all networks learn, from the same initialization."""

import json
import math
import warnings
from dataclasses import asdict
from pathlib import Path

import measured_tables
import pytest
import torch

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)  # fvcore's
    from benchmarks import claim
from tests.data.datasets import write_image_folder


@pytest.mark.parametrize("name", claim.ENTRANTS)
def test_all_networks_start_alike(name: str) -> None:
    network = claim.ENTRANTS[name].build(claim.SMALL)
    assert network.fc.weight.detach().std() == pytest.approx(math.sqrt(2 / 1024), rel=0.02)
    block = network.layer3[1]
    convolution = next(module for module in block.modules() if isinstance(module, torch.nn.Conv2d))
    he = math.sqrt(2 / convolution.in_channels)
    assert convolution.weight.detach().std() == pytest.approx(he, rel=0.02)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and module.bias is not None:
            assert not module.bias.any()
    # Every residual branch starts at 0, so a block returns its input.
    x = torch.rand(2, 512, 4, 4)
    assert torch.equal(network.eval().layer3[1](x), x)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_quick_run_gives_a_row_with_accuracy_and_cost(tmp_path: Path) -> None:
    data = write_image_folder(tmp_path / "data", train=8, val=2)
    widths = {"2s": [32, 32, 32, 64], "SK": [8, 8, 8, 8]}
    for name, expected in widths.items():
        row = claim.measured(name, 1, str(data), tmp_path, "quick")
        assert (row["network"], row["seed"], row["n"]) == (name, 1, 6)
        assert 0 <= row["top1"] <= 100
        assert row["recipe"]["epochs"] == 1
        assert row["attention_widths"] == expected
        assert row["training_images"] == 24
        assert row["gmacs"] == pytest.approx(0.0024, rel=0.2)


def test_new_rows_of_the_claim_have_the_recipe_of_the_stored_ones() -> None:
    rows = json.loads((measured_tables.BENCHMARKS / "claim.json").read_text("utf-8"))
    new = {"recipe": json.loads(json.dumps(asdict(claim.SMALL.recipe)))}
    assert measured_tables._one_recipe([*rows, new])["epochs"] == 4
