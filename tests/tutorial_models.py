"""Models laid out as the tutorials' are, and how those caption: what `showtell import` is tested against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

WORDS = [
    "a",
    "dog",
    "cat",
    "runs",
    "sits",
    "on",
    "the",
    "grass",
    "red",
    "ball",
    "t-shirt",
    "with",
    "blue",
    "two",
    "sky",
]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Encoder(nn.Module):
    """A ResNet without its last two children, its map brought to 14 x 14."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_image_size = 14
        self.resnet = nn.Sequential(*list(models.resnet18(weights=None).children())[:-2])
        self.adaptive_pool = nn.AdaptiveAvgPool2d((14, 14))

    def forward(self, images: Tensor) -> Tensor:
        return self.adaptive_pool(self.resnet(images)).permute(0, 2, 3, 1)


class Attention(nn.Module):
    def __init__(self, width: int, hidden: int, size: int) -> None:
        super().__init__()
        self.encoder_att = nn.Linear(width, size)
        self.decoder_att = nn.Linear(hidden, size)
        self.full_att = nn.Linear(size, 1)
        self.relu = nn.ReLU()
        self.softmax = nn.Softmax(dim=1)

    def forward(self, cells: Tensor, h: Tensor) -> Tensor:
        mixed = self.encoder_att(cells) + self.decoder_att(h).unsqueeze(1)
        alpha = self.softmax(self.full_att(self.relu(mixed)).squeeze(2))
        return (cells * alpha.unsqueeze(2)).sum(dim=1)


class DecoderWithAttention(nn.Module):
    def __init__(self, words: int, width: int = 512, embed: int = 12, hidden: int = 16, size: int = 10) -> None:
        super().__init__()
        self.attention = Attention(width, hidden, size)
        self.embedding = nn.Embedding(words, embed)
        self.dropout = nn.Dropout(p=0.5)
        self.decode_step = nn.LSTMCell(embed + width, hidden, bias=True)
        self.init_h = nn.Linear(width, hidden)
        self.init_c = nn.Linear(width, hidden)
        self.f_beta = nn.Linear(hidden, width)
        self.sigmoid = nn.Sigmoid()
        self.fc = nn.Linear(hidden, words)

    def begin(self, encoded: Tensor) -> Any:
        cells = encoded.flatten(1, 2)
        return cells, self.init_h(cells.mean(1)), self.init_c(cells.mean(1))

    def scores(self, word: Tensor, state: Any) -> tuple[Tensor, Any]:
        cells, h, c = state
        seen = self.sigmoid(self.f_beta(h)) * self.attention(cells, h)
        h, c = self.decode_step(torch.cat([self.embedding(word), seen], dim=1), (h, c))
        return self.fc(h), (cells, h, c)


class EncoderCNN(nn.Module):
    """A ResNet without its last child, a linear layer and, in one of the two tutorials, batch norm."""

    def __init__(self, embed: int, norm: bool) -> None:
        super().__init__()
        self.resnet = nn.Sequential(*list(models.resnet18(weights=None).children())[:-1])
        if norm:
            self.linear = nn.Linear(512, embed)
            self.bn = nn.BatchNorm1d(embed, momentum=0.01)
        else:
            self.embed = nn.Linear(512, embed)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.resnet(images).flatten(1)
        return self.bn(self.linear(pooled)) if hasattr(self, "bn") else self.embed(pooled)


class DecoderRNN(nn.Module):
    def __init__(self, words: int, embed: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, embed)
        self.lstm = nn.LSTM(embed, hidden, layers, batch_first=True)
        self.linear = nn.Linear(hidden, words)

    def begin(self, encoded: Tensor) -> Any:
        return self.lstm(encoded.unsqueeze(1))[1]

    def scores(self, word: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden, state = self.lstm(self.embed(word).unsqueeze(1), state)
        return self.linear(hidden.squeeze(1)), state


class Vocabulary:
    """As it is pickled: two dicts and a counter."""

    def __init__(self, words: list[str]) -> None:
        self.word2idx = {word: number for number, word in enumerate(words)}
        self.idx2word = dict(enumerate(words))
        self.idx = len(words)


def shaken(module: nn.Module, seed: int) -> nn.Module:
    """Random weights and batch-norm statistics that give different photos different captions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point() and "resnet" not in name:
                tensor.uniform_(-0.6, 0.6, generator=generator)
    return module.eval()


@torch.no_grad()
def captions_of(encoder: nn.Module, decoder: Any, images: Tensor, words: list[str], ids: dict[str, int]) -> list[str]:
    """Greedy captions of images (N, 3, H, W) in 0..1, without <pad>, <start> and <unk>, 20 words at most."""
    spelling = {number: word for word, number in ids.items()}
    found = []
    for image in (images - MEAN) / STD:
        state = decoder.begin(encoder(image.unsqueeze(0)))
        word, said = ids["<start>"], []
        for _ in range(20):
            scores, state = decoder.scores(torch.tensor([word]), state)
            for name in ("<pad>", "<start>", "<unk>"):
                if name in ids:
                    scores[0, ids[name]] = -torch.inf
            word = int(scores.argmax())
            if word == ids["<end>"]:
                break
            said.append(spelling[word])
        found.append(" ".join(said))
    return found
