"""PyTorch-Encoding's segmentation networks load, and give the same logits as there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from splitattn.architectures import ARCHITECTURES
from splitattn.dense.segmenters import create_segmenter
from tests.dense.encoding import Network, enlarged
from tests.dense.runs import ARCHITECTURE

CLASSES = 5
WIDTH = ARCHITECTURE.stage_channels[-1]
CHANNELS = {"deeplabv3": WIDTH // 8, "fcn": WIDTH // 4}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "small", ARCHITECTURE)


def saved(head: str, path: Path) -> Network:
    """A network of random tensors in evaluation mode; its checkpoint is saved to `path`."""
    torch.manual_seed(0)
    network = Network(ARCHITECTURE, head, CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    state = {key: value for key, value in network.state_dict().items() if ".fc." not in key}
    torch.save({"state_dict": state}, path)
    return network.eval()


@pytest.mark.parametrize("head", ["deeplabv3", "fcn"])
def test_logits_are_those_of_their_network(
    head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = saved(head, tmp_path / "a.pth")
    ours = create_segmenter(
        "small",
        head=head,
        num_classes=CLASSES,
        channels=CHANNELS[head],
        weights=tmp_path / "a.pth",
        auxiliary=True,
    ).eval()
    image = torch.randn(2, 3, 49, 65)
    with torch.inference_mode():
        expected, found = theirs(image), enlarged(ours(image), image)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert "the head is loaded too" in caplog.text
    assert "the auxiliary head is loaded too" in caplog.text
    assert "loading the backbone without" not in caplog.text
    assert ours.auxiliary is not None
    maps = ours.backbone(image)
    torch.testing.assert_close(ours.auxiliary(maps), theirs.auxlayer(maps[-2]))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_classes": 7}, r"its 4.weight must be (7, 128, 1, 1), got (5, 128, 1, 1)"),
        ({"head": "deeplabv3"}, "got none"),
        ({"new_head": True}, ""),
    ],
)
def test_a_head_that_does_not_fit_is_initialized_anew(
    options: dict[str, Any], told: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved("fcn", tmp_path / "a.pth")
    asked = {"head": "fcn", "num_classes": CLASSES, "channels": WIDTH // 4, **options}
    create_segmenter("small", weights=tmp_path / "a.pth", **asked)
    assert told in caplog.text
    assert "the head is loaded too" not in caplog.text
    assert ("the head is new and untrained" in caplog.text) == bool(told)
    assert caplog.text.count("loading the backbone without") == 1
