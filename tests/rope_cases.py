"""Scaled rotary embeddings for tiny models: texts of tests are longer than their original lengths."""

from __future__ import annotations

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
