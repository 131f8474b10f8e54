"""Tiny random models in Hugging Face folders, with a byte-level tokenizer: the whole path, in milliseconds."""

from pathlib import Path

import torch

TEXTS = [
    "You press <<A>>. You win 3 points.\nYou press <<B>>. You lose 12 points.\n",
    "In this task, you choose between two slot machines, J and F. You see the word apple. You say <<word>>.\n",
]


def make_tokenizer(folder: Path, *, bos: bool = True, vocab_size: int = 400) -> None:
    """A byte-level BPE tokenizer trained on a few lines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def make_llama(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "1GB", **changes
) -> Path:
    """A random Llama in `folder`; `changes` go to LlamaConfig. Weights are large enough for peaked predictions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 400,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **changes,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=shard)
    make_tokenizer(folder, vocab_size=settings["vocab_size"])
    return folder


def transformers_logprobs(folder: Path, ids: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """log p(token | before) for every token but the first, by transformers, log-softmax in fp64. [T − 1]"""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return logits.double().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
