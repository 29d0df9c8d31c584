"""Small tasks in torch."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset

import smlt

SAMPLES = 64


class Words(smlt.TorchTask):
    """Sums the embeddings of three words, of whose gradient most rows are zero."""

    def dataset(self, data, split):
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(0, 50, (SAMPLES, 3), generator=generator)
        return [(row, row.sum().float() / 75) for row in words]

    def model(self):
        return nn.EmbeddingBag(50, 1, mode="sum", sparse=True)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(self, model, batch):
        words, wanted = batch
        return F.mse_loss(model(words)[:, 0], wanted)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1)


class Streams(Words):
    def dataset(self, data, split):
        return Stream()


class NoModel(Words):
    def model(self):
        raise RuntimeError("no model today")
