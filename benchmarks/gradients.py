"""Real gradients to measure with: one true backward pass each of three small models.

python -m benchmarks.gradients      makes benchmarks/.cache/gradient-<model>.npy
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

CACHE = Path(__file__).parent / ".cache"


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 for 1000 classes: 11.7 M parameters."""
    blocks: list[nn.Module] = []
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Residual(inputs, outputs, stride), Residual(outputs, outputs, 1)]
        inputs = outputs
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(
        *stem, nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(512, 1000),
    )  # fmt: skip


class Transformer(nn.Module):
    """A small encoder over a vocabulary: 12 M parameters, a third of them the embedding."""

    def __init__(self, vocabulary: int = 16_000, width: int = 256, layers: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def embedding_model() -> nn.Module:
    """A bag of words over a large vocabulary: nearly all rows of its gradient are zero."""
    return nn.Sequential(nn.EmbeddingBag(60_000, 128, mode="mean"), nn.ReLU(), nn.Linear(128, 10))


def _tokens(vocabulary: int, shape: tuple[int, int]) -> Tensor:
    # Words are used by Zipf's law: a few very often, most of them rarely.
    ranks = np.random.default_rng(0).zipf(1.2, shape)
    return torch.from_numpy(np.minimum(ranks, vocabulary) - 1)


def _backward(model: nn.Module, inputs: Tensor, classes: int) -> NDArray[np.float32]:
    labels = torch.arange(len(inputs)) % classes
    F.cross_entropy(model(inputs), labels).backward()
    parts = [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
    flat: NDArray[np.float32] = torch.cat(parts).numpy()
    return flat


MODELS: dict[str, Callable[[], NDArray[np.float32]]] = {
    "resnet18": lambda: _backward(resnet18(), torch.randn(8, 3, 96, 96), 1000),
    "transformer": lambda: _backward(Transformer(), _tokens(16_000, (16, 64)), 2),
    "embedding": lambda: _backward(embedding_model(), _tokens(60_000, (64, 64)), 10),
}


def gradient(model: str) -> NDArray[np.float32]:
    """Return the flat gradient of a model's backward pass, made once and cached."""
    path = CACHE / f"gradient-{model}.npy"
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        torch.manual_seed(0)
        np.save(path, MODELS[model]())
    flat: NDArray[np.float32] = np.load(path)
    return flat


def top(array: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """Return the array with all but the largest `share` of its values set to zero."""
    kept = max(1, int(share * array.size))
    least = np.partition(np.abs(array), array.size - kept)[array.size - kept]
    return np.where(np.abs(array) >= least, array, np.float32(0.0))


if __name__ == "__main__":
    for name in MODELS:
        values = gradient(name)
        print(f"{name}: {values.size:,} values, {np.mean(values == 0):.1%} zero")
