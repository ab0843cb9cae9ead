"""PyTorch-Encoding's DeepLabV3 and FCN, rebuilt from their published keys and layers.

Source: encoding/models/sseg/{base,deeplab,fcn}.py of github.com/zhanghang1989/PyTorch-Encoding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitattn.architectures import Architecture
from splitattn.create import create_model
from splitattn.nn.resnest import ResNeSt


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


def normed(conv: nn.Conv2d, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(), *more)


class FCNHead(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        inner = width // 4
        conv = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.conv5 = normed(conv, nn.Dropout(0.1), nn.Conv2d(inner, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv5(x)


class Pooling(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), *normed(nn.Conv2d(width, inner, 1, bias=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        return enlarged(self.gap(x), x)


class Pyramid(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width // 8
        self.b0 = normed(nn.Conv2d(width, inner, 1, bias=False))
        for number, rate in enumerate((12, 24, 36), start=1):
            conv = nn.Conv2d(width, inner, 3, padding=rate, dilation=rate, bias=False)
            self.add_module(f"b{number}", normed(conv))
        self.b4 = Pooling(width, inner)
        self.project = normed(nn.Conv2d(5 * inner, inner, 1, bias=False), nn.Dropout2d(0.5))

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.get_submodule(f"b{i}")(x) for i in range(5)]
        return self.project(torch.cat(branches, 1))


class DeepLabV3Head(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        inner = width // 8
        self.aspp = Pyramid(width)
        conv = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.block = normed(conv, nn.Dropout2d(0.1), nn.Conv2d(inner, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.aspp(x))


HEADS = {"deeplabv3": DeepLabV3Head, "fcn": FCNHead}


class Network(nn.Module):
    """A dilated ResNeSt called `pretrained`, a head, and the auxiliary head, unused here."""

    def __init__(self, architecture: Architecture, head: str, classes: int) -> None:
        super().__init__()
        self.pretrained: ResNeSt = create_model(architecture, output_stride=8)
        wide, wider = architecture.stage_channels[-2:]
        self.head = HEADS[head](wider, classes)
        self.auxlayer = FCNHead(wide, classes)

    def forward(self, x: Tensor) -> Tensor:
        net = self.pretrained
        maps = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            maps = stage(maps)
        return enlarged(self.head(maps), x)
