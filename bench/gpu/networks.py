"""The networks that the harness serves on a real GPU, in plain ``torch.nn``. Weights are random:
time does not depend on them.

Shapes are those of He et al. 2016 (ResNet-50), Simonyan and Zisserman 2015 (VGG-16) and Devlin et
al. 2019 (BERT-base); the first two take pictures of bytes, 3 x 224 x 224, the third 128 token ids.
The small MLP takes 1,024 floats.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pixels(nn.Module):
    """Bytes 0..255 to what a network was trained on: mean 0, deviation about 1."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - 118.0) / 58.0


class Bottleneck(nn.Module):
    """1 x 1 down to ``width``, 3 x 3, 1 x 1 up to four times ``width``, beside a shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """25.6 million weights; (n, 3, 224, 224) bytes to (n, 1000)."""
    layers: list[nn.Module] = [
        Pixels(),
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, 2 if stage > 0 and block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def vgg16() -> nn.Module:
    """138.4 million weights; (n, 3, 224, 224) bytes to (n, 1000)."""
    layers: list[nn.Module] = [Pixels()]
    channels = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = [
        nn.Flatten(),
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *head, nn.Linear(4096, 1000))


class Bert(nn.Module):
    """Encoder of 12 layers, 768 wide, 12 heads; (n, 128) token ids to the first position's (n,
    768)."""

    def __init__(self, tokens: int = 30_522, positions: int = 512, width: int = 768) -> None:
        super().__init__()
        self.token = nn.Embedding(tokens, width)
        self.position = nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(
            width, 12, 4 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        hidden = self.layers(self.norm(self.token(ids) + self.position(places)))
        return torch.tanh(self.pooler(hidden[:, 0]))


def mlp() -> nn.Module:
    """Four layers of 2,048; (n, 1024) to (n, 100)."""
    layers: list[nn.Module] = []
    width = 1024
    for _ in range(4):
        layers += [nn.Linear(width, 2048), nn.ReLU(inplace=True)]
        width = 2048
    return nn.Sequential(*layers, nn.Linear(width, 100))


NETWORKS = {"resnet50": resnet50, "vgg16": vgg16, "bert": Bert, "mlp": mlp}


def network(name: str, device: torch.device) -> nn.Module:
    """The network of this name on ``device``, ready to serve. Raises ``KeyError`` naming those
    there are."""
    if name not in NETWORKS:
        raise KeyError(f"there is no network {name!r}: {', '.join(NETWORKS)}")
    with device:  # weights are made where they are used: there is nothing to copy
        return NETWORKS[name]().eval().requires_grad_(requires_grad=False)
