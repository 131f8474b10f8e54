"""What distinguishes one decoder from another, as data: a family is a row of traits, not a file."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeTraits:
    """Rotary embedding: base θ, share of the head that is rotated, and the scaling of its frequencies.

    kind: `default`; `linear` (all frequencies / factor); `llama3` (low frequencies / factor, a smooth passage between
    original_max_positions / low_freq_factor and / high_freq_factor wavelengths); `factors` (each frequency divided by
    its own number, as GGUF files store Llama 3's scaling).
    """

    base: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    rotated_share: float = 1.0
    factors: tuple[float, ...] = ()

    def inv_freq(self, head_dim: int) -> Tensor:
        """Frequencies of the rotated pairs, fp32, computed in fp32 as the models were trained.

        Source of the llama3 scaling: the Llama 3.1 model card and its reference implementation.
        """
        num_rotated = int(head_dim * self.rotated_share)
        inv_freq = 1.0 / (self.base ** (torch.arange(0, num_rotated, 2, dtype=torch.int64).float() / num_rotated))
        if self.kind == "linear":
            return inv_freq / self.factor
        if self.kind == "factors":
            return inv_freq / torch.tensor(self.factors, dtype=torch.float32)
        if self.kind == "llama3":
            return self._llama3(inv_freq)
        return inv_freq

    def _llama3(self, inv_freq: Tensor) -> Tensor:
        wavelength = 2 * math.pi / inv_freq
        low_wavelength = self.original_max_positions / self.low_freq_factor
        high_wavelength = self.original_max_positions / self.high_freq_factor
        smooth = (self.original_max_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - smooth) * inv_freq / self.factor + smooth * inv_freq
        scaled = torch.where(wavelength > low_wavelength, inv_freq / self.factor, inv_freq)
        between = (wavelength >= high_wavelength) & (wavelength <= low_wavelength)
        return torch.where(between, blended, scaled)


@dataclass(frozen=True)
class Traits:
    """Everything about a decoder's shape and equations that its weights do not say themselves."""

    family: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: RopeTraits
    qkv_bias: bool = False
    o_bias: bool = False
    activation: str = "silu"
    tied_head: bool = False

    @property
    def num_layer_params(self) -> int:
        """Weights of one layer's matrices."""
        qkvo = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return self.hidden_size * (qkvo + 3 * self.intermediate_size)


@dataclass(frozen=True)
class Family:
    """One architecture: its name in config.json, in GGUF files, and where it departs from the plain decoder."""

    architecture: str
    gguf_architecture: str | None
    model_types: tuple[str, ...]


FAMILIES: tuple[Family, ...] = (Family("LlamaForCausalLM", "llama", ("llama",)),)
"""Architectures that load. The next family of the same equations is another row."""
