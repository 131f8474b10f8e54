"""A gated delta-net's tensors as GGUF files have them: value heads in another order, the rate of decay itself.

Key head k serves R value heads. Hugging Face stores them one key head after the other (k · R + r), llama.cpp the first of
every key head, then the second (r · K + k), in the rows of the projections, the channels of the filter, the numbers a head
and the columns of the output projection. Of the decay it stores −exp(A_log).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from psyfast.model.load.stored import StoredTensor

LAYER_NAMES = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
VECTOR_NAMES = {"ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias"}
KEYS = {
    "full_attention_interval": "full_attention_interval",
    "ssm.conv_kernel": "linear_conv_kernel_dim",
    "ssm.state_size": "linear_key_head_dim",
    "ssm.group_count": "linear_num_key_heads",
    "ssm.time_step_rank": "linear_num_value_heads",
}
_PART = re.compile(r"linear_attn\.(in_proj_qkv|in_proj_z|in_proj_a|in_proj_b|conv1d|out_proj|A_log|dt_bias)\b")


@dataclass(frozen=True)
class TiledHeads:
    """The value heads' order in a file. Zeros where the file says nothing of them: then nothing is read by it."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int

    @classmethod
    def of(cls, metadata: Mapping[str, Any], architecture: str) -> TiledHeads:
        """From a file's metadata; its values are checked where the traits are made of them."""

        def number(key: str) -> int:
            value = metadata.get(f"{architecture}.ssm.{key}", 0)
            return value if isinstance(value, int) else 0

        num_value_heads = number("time_step_rank")
        value_dim = number("inner_size") // num_value_heads if num_value_heads else 0
        return cls(number("group_count"), num_value_heads, number("state_size"), value_dim)

    def read_into(self, stored: StoredTensor, name: str, out: Tensor, first_row: int) -> bool:
        """Fill `out` with rows of a tensor in Hugging Face's order; False where it is none of these."""
        found = _PART.search(name)
        if found is None:
            return False
        part = found[1]
        if part in ("A_log", "dt_bias"):
            values = torch.empty(stored.shape, dtype=torch.float32)
            stored.read_into(values)
            out.copy_((torch.log(-values) if part == "A_log" else values)[self._places(1)])
        elif part == "out_proj":
            rows = torch.empty_like(out)
            stored.read_into(rows, first_row)
            out.copy_(rows[:, self._places(self.value_dim)])
        else:
            self._read_rows(stored, part, out.view(len(out), -1), first_row)
        return True

    def _read_rows(self, stored: StoredTensor, part: str, out: Tensor, first_row: int) -> None:
        """A run of neighbours in the file at a time."""
        places = self._places(1 if part in ("in_proj_a", "in_proj_b") else self.value_dim)
        if part in ("in_proj_qkv", "conv1d"):
            num_before = 2 * self.num_key_heads * self.key_dim
            places = torch.cat([torch.arange(num_before), num_before + places])
        wanted = places[first_row : first_row + len(out)]
        breaks = torch.nonzero(wanted.diff() != 1).flatten() + 1
        done = 0
        for run in wanted.tensor_split(breaks.tolist()):
            if len(run):
                stored.read_into(out[done : done + len(run)], int(run[0]))
                done += len(run)

    def _places(self, size: int) -> Tensor:
        """Where in the file Hugging Face's row stands, for heads of so many rows."""
        num_sharing = self.num_value_heads // max(1, self.num_key_heads)
        in_file = torch.arange(self.num_value_heads * size).view(num_sharing, self.num_key_heads, size)
        return in_file.transpose(0, 1).flatten()
