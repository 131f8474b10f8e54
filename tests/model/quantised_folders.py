"""Folders whose weights are quantised, written from codes and scales, and what their values are by the papers' formulas."""

import json

import torch
from safetensors.torch import load_file, save_file

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
ROUTER = "gate"
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def gptq_parts(num_out, num_in, *, bits, group, zero_offset, shuffled):
    """Random codes, zeros and scales, and the matrix that they mean, one value at a time from the definition."""
    groups = torch.arange(num_in) // group
    if shuffled:
        groups = groups[torch.randperm(num_in)]
    num_groups = -(-num_in // group)
    codes = torch.randint(0, 1 << bits, (num_in, num_out))
    zeros = torch.randint(1, 1 << bits, (num_groups, num_out))
    scales = (torch.rand(num_groups, num_out) * 0.05 + 0.01).half()
    values = torch.empty(num_out, num_in)
    for i in range(num_in):
        values[:, i] = (codes[i] - zeros[groups[i]]) * scales[groups[i]].float()
    parts = {
        "qweight": packed(codes.T, bits).T.contiguous(),
        "qzeros": packed(zeros - zero_offset, bits),
        "scales": scales,
        "g_idx": groups.int(),
    }
    return parts, values


def awq_parts(num_out, num_in, *, group):
    """The same for AWQ's order of outputs in a word."""
    num_groups = -(-num_in // group)
    codes = torch.randint(0, 16, (num_in, num_out))
    zeros = torch.randint(0, 16, (num_groups, num_out))
    scales = (torch.rand(num_groups, num_out) * 0.05 + 0.01).half()
    values = torch.empty(num_out, num_in)
    for i in range(num_in):
        values[:, i] = (codes[i] - zeros[i // group]) * scales[i // group].float()
    return {
        "qweight": packed(codes, 4, AWQ_ORDER),
        "qzeros": packed(zeros, 4, AWQ_ORDER),
        "scales": scales,
    }, values


def packed(codes, bits, order=None):
    """[rows, columns] of small integers into words of 32 bits along the columns; order[k]: which of a word's codes is the kth."""
    a_word = 32 // bits
    order = order or range(a_word)
    words = torch.zeros(codes.shape[0], codes.shape[1] // a_word, dtype=torch.int64)
    for place, which in enumerate(order):
        words |= codes[:, which::a_word] << (bits * place)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def nf4_parts(num_out, num_in):
    """A random matrix as bitsandbytes stores it, and what its plain path makes of it (see tests.model.test_quantised)."""
    from bitsandbytes import functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    codes, state = functional.quantize_4bit(torch.randn(num_out, num_in) * 0.2, quant_type="nf4")
    values = _dequantize_4bit_compute(
        codes.reshape(-1), state.absmax, state.code, state.blocksize, (num_out, num_in), torch.float32
    )
    parts = {f"weight.{suffix}": part for suffix, part in state.as_dict(packed=True).items()}
    return {"weight": codes, **parts}, values


def int8_parts(num_out, num_in):
    """The same in eight bits, with a scale a row."""
    from bitsandbytes import functional

    codes, row_scales, _ = functional.int8_vectorwise_quant((torch.randn(num_out, num_in) * 0.2).half())
    return {"weight": codes, "SCB": row_scales}, functional.int8_vectorwise_dequant(codes, row_scales)


def replace_matrices(folder, make, settings, names=PROJECTIONS):
    """Every matrix so named of a model folder replaced by what make(rows, columns) returns: parts by suffix, and values.

    Returns the state of the same model with the values.
    """
    path = folder / "model.safetensors"
    stored, plain = {}, {}
    for name, tensor in load_file(path).items():
        base = name.removesuffix(".weight")
        if base.rpartition(".")[2] in names:
            parts, plain[name] = make(*tensor.shape)
            stored |= {f"{base}.{suffix}": part.contiguous() for suffix, part in parts.items()}
        else:
            stored[name] = plain[name] = tensor
    save_file(stored, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return plain
