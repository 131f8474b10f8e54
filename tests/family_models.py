"""Random models of the shapes of tests.family_cases, made and saved by transformers, and what transformers says of a text."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.family_cases import CASES, SHAPE, VISION
from tests.tiny import make_tokenizer


def make_case(folder: Path, case: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> Path:
    """A case's model and a tokenizer in `folder`; `changes` go to its configuration."""
    import transformers

    architecture, settings = CASES[case]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(seed)
    settings = {**SHAPE, **settings, **changes}
    # peaked predictions, not chaotic ones: states amplify, and so do experts that are chosen by a hair's breadth
    peak = 1.0 if architecture.startswith(("Qwen3_5", "GptOss")) else 1.4
    settings["initializer_range"] = peak * settings["hidden_size"] ** -0.5
    if architecture in VISION:
        vision = _with_width(VISION[architecture], settings["hidden_size"])
        tied = settings.pop("tie_word_embeddings", False)
        settings = {"text_config": settings, "vision_config": vision, "tie_word_embeddings": tied}
    model = model_class(model_class.config_class(**settings)).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(dtype).save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def _with_width(vision: dict, hidden_size: int) -> dict:
    """What a Qwen tower hands on is as wide as the text body."""
    return {**vision, "out_hidden_size": hidden_size} if "depth" in vision else vision


def transformers_nlls(folder: Path, architecture: str, ids: list[int]) -> torch.Tensor:
    """−log p(token | before) for every token but the first, by transformers in fp32 with its own attention. [T − 1]"""
    import transformers

    model_class = getattr(transformers, architecture)
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = model_class.from_pretrained(folder, dtype=torch.float32, **eager).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return -logits.double().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
