"""The encoders' network: a small BERT, with the arithmetic of llama.cpp's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of the network."""

    vocabulary: int
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    inner: int = 384
    context: int = 512
    epsilon: float = 1e-12


class Layer(nn.Module):
    """Attention and feed-forward, each normalised after it was added to what came in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._heads = shape.heads
        self.attn_q = nn.Linear(shape.hidden, shape.hidden)
        self.attn_k = nn.Linear(shape.hidden, shape.hidden)
        self.attn_v = nn.Linear(shape.hidden, shape.hidden)
        self.attn_output = nn.Linear(shape.hidden, shape.hidden)
        self.attn_output_norm = nn.LayerNorm(shape.hidden, eps=shape.epsilon)
        self.ffn_up = nn.Linear(shape.hidden, shape.inner)
        self.ffn_down = nn.Linear(shape.inner, shape.hidden)
        self.layer_output_norm = nn.LayerNorm(shape.hidden, eps=shape.epsilon)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        batch, length, hidden = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, length, self._heads, hidden // self._heads).transpose(1, 2)

        query, key, value = heads(self.attn_q(x)), heads(self.attn_k(x)), heads(self.attn_v(x))
        scores = query @ key.transpose(-1, -2) * (hidden // self._heads) ** -0.5
        scores = scores.masked_fill(~there[:, None, None, :], -1e4)
        mixed = (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).reshape(batch, length, hidden)
        x = self.attn_output_norm(x + self.attn_output(mixed))
        inner = functional.gelu(self.ffn_up(x), approximate="tanh")
        return self.layer_output_norm(x + self.ffn_down(inner))


class EncoderNetwork(nn.Module):
    """Tokens to states, and of these a vector for a text (:meth:`embed`) or a score for a pair (:meth:`score`)."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position_embd = nn.Embedding(shape.context, shape.hidden)
        self.token_types = nn.Embedding(2, shape.hidden)
        self.token_embd_norm = nn.LayerNorm(shape.hidden, eps=shape.epsilon)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        #: The head of a reranker; an embedding model is shipped without.
        self.cls = nn.Linear(shape.hidden, shape.hidden)
        self.cls_output = nn.Linear(shape.hidden, 1)
        self._drop = nn.Dropout(dropout)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, 0.0, 0.04)

    def forward(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Return the states of ``tokens``; ``there`` is False for padding."""
        places = torch.arange(tokens.shape[1])
        # Both texts of a pair have type 0 in llama.cpp.
        x = self.token_embd(tokens) + self.position_embd(places) + self.token_types.weight[0]
        x = self._drop(self.token_embd_norm(x))
        for layer in self.blk:
            x = layer(x, there)
        return x

    def embed(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Return the mean of the states, of length one."""
        weight = there[..., None].float()
        mean = (self(tokens, there) * weight).sum(1) / weight.sum(1)
        return functional.normalize(mean.float(), dim=-1)

    def score(self, tokens: Tensor, there: Tensor) -> Tensor:
        """Return how well the second text of each pair answers the first."""
        first = self(tokens, there)[:, 0]
        return self.cls_output(torch.tanh(self.cls(first))).squeeze(-1).float()
