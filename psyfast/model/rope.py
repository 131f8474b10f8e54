"""Rotary embeddings as data: a base, the share of a head that turns, and how the frequencies are scaled."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeTraits:
    """Rotary embedding: base θ, share of the head that is rotated, and the scaling of its frequencies.

    kind: `default`; `linear` (all frequencies / factor); `llama3` (low frequencies / factor, a smooth passage between
    original_max_positions / low_freq_factor and / high_freq_factor wavelengths); `yarn` (the same idea between the pairs
    that turn beta_slow and beta_fast times over the original positions, cos and sin times attention_scale; truncate
    rounds these two to whole pairs); `factors` (each frequency divided by its own number, as GGUF files store Llama 3's
    scaling).
    """

    base: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    rotated_share: float = 1.0
    factors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_scale: float = 1.0

    def inv_freq(self, head_dim: int) -> Tensor:
        """Frequencies of the rotated pairs, fp32, computed in fp32 as the models were trained.

        Source of the llama3 scaling: the Llama 3.1 model card and its reference implementation.
        """
        num_rotated = int(head_dim * self.rotated_share)
        wavelengths = self.base ** (torch.arange(0, num_rotated, 2, dtype=torch.int64).float() / num_rotated)
        inv_freq = 1.0 / wavelengths
        if self.kind == "linear":
            return inv_freq / self.factor
        if self.kind == "factors":
            return inv_freq / torch.tensor(self.factors, dtype=torch.float32)
        if self.kind == "llama3":
            return self._llama3(inv_freq)
        if self.kind == "yarn":
            return self._yarn(wavelengths, num_rotated)
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

    def _yarn(self, wavelengths: Tensor, num_rotated: int) -> Tensor:
        """NTK by parts (Peng et al. 2023, section 3.2): a ramp from kept frequencies to those divided by factor."""
        first, last = self._pair_turning(self.beta_fast, num_rotated), self._pair_turning(self.beta_slow, num_rotated)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, num_rotated - 1)
        if first == last:
            last += 0.001  # a step
        ramp = ((torch.arange(num_rotated // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
        kept = 1 - ramp
        return 1.0 / (self.factor * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept

    def _pair_turning(self, turns: float, num_rotated: int) -> float:
        """The (fractional) pair that turns so many times over the original positions."""
        return num_rotated * math.log(self.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(self.base))


def yarn_attention_scale(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """What cos and sin are multiplied by where a yarn configuration does not say: 0.1 ln(factor) + 1."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)
