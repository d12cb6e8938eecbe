"""The demonstration model as a plain torch network: Qwen-3's arithmetic and parameter names, nothing else.

Plain so that it compiles to one graph; its state loads into transformers' Qwen3ForCausalLM as it is, and a
check after training compares the two.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes; every input of a linear is a multiple of 64, so that groups of 64 fit."""

    vocabulary: int = 2048
    width: int = 256
    inner: int = 768
    layers: int = 10
    heads: int = 8
    key_heads: int = 4
    head: int = 32
    context: int = 768
    theta: float = 10_000.0
    epsilon: float = 1e-6

    def hugging_face(self, pad: int, end: int) -> Any:
        """The same as a Qwen3Config."""
        from transformers import Qwen3Config

        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head,
            max_position_embeddings=self.context,
            rope_parameters={"rope_type": "default", "rope_theta": self.theta},
            rms_norm_eps=self.epsilon,
            tie_word_embeddings=True,
            attention_bias=False,
            pad_token_id=pad,
            eos_token_id=end,
            bos_token_id=None,
        )


class Norm(nn.Module):
    """Root mean square norm with a gain."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x.float(), self.weight.shape, self.weight, self.epsilon).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys and rotary positions."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.q_proj = nn.Linear(s.width, s.heads * s.head, bias=False)
        self.k_proj = nn.Linear(s.width, s.key_heads * s.head, bias=False)
        self.v_proj = nn.Linear(s.width, s.key_heads * s.head, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head, s.width, bias=False)
        self.q_norm, self.k_norm = Norm(s.head, s.epsilon), Norm(s.head, s.epsilon)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(batch, length, -1, self.s.head)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(batch, length, -1, self.s.head)).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, self.s.head).transpose(1, 2)
        q, k = rotated(q, cos, sin).to(v.dtype), rotated(k, cos, sin).to(v.dtype)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(s.width, s.inner, bias=False)
        self.up_proj = nn.Linear(s.width, s.inner, bias=False)
        self.down_proj = nn.Linear(s.inner, s.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One transformer block, norms first."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(s.width, s.epsilon)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = Norm(s.width, s.epsilon)
        self.mlp = Mlp(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Embedding, blocks, last norm."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocabulary, s.width)
        self.layers = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = Norm(s.width, s.epsilon)


class Network(nn.Module):
    """The whole model; the head is the embedding."""

    def __init__(self, s: Shape) -> None:
        super().__init__()
        self.s = s
        self.model = Trunk(s)
        cos, sin = rotary(s)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._start()

    def _start(self) -> None:
        """Small normal weights; what is added to the residual stream starts smaller still."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            last = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * self.s.layers) ** 0.5 if last else 0.02)

    def logits(self, tokens: Tensor) -> Tensor:
        x = self.model.embed_tokens(tokens)
        length = tokens.shape[1]
        cos, sin = self.cos[:length].to(x.dtype), self.sin[:length].to(x.dtype)
        for block in self.model.layers:
            x = block(x, cos, sin)
        return functional.linear(self.model.norm(x), self.model.embed_tokens.weight)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Mean loss in nats over what is to be learnt, by weight."""
        logits = self.logits(tokens[:, :-1]).float()
        losses = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        gains = weights[:, 1:].flatten().float()
        return (losses * gains).sum() / gains.sum()


def rotary(s: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all positions: [context, head]."""
    rates = s.theta ** (-torch.arange(0, s.head, 2).float() / s.head)
    angles = torch.outer(torch.arange(s.context).float(), rates)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Positions applied, halves paired as Qwen and Llama do."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin
