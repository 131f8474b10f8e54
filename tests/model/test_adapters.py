"""LoRA adapters: within 1e-4 nats of peft's own forward, and by name what cannot be merged."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from psyfast.engine import Engine
from psyfast.errors import ModelError, UsageError
from psyfast.model.load.locate import locate, with_adapters
from psyfast.model.load.model import load_model, open_model
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from tests.family_models import make_case
from tests.tiny import make_llama

IDS = np.random.default_rng(4).integers(2, 400, 120)

LORAS = {
    "all projections": {"r": 4, "lora_alpha": 9, "target_modules": "all-linear"},
    "rank-stabilised": {"r": 8, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "up_proj"]},
    "ranks and alphas of modules": {
        "r": 4,
        "lora_alpha": 7,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "rank_pattern": {"down_proj": 3, "layers.1.self_attn.k_proj": 5},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 20, "down_proj": 2},
    },
    "head and norms saved whole": {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["lm_head", "norm"]},
    "embedding, and the head as a matrix": {"r": 3, "target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    "layers of a choice": {"r": 4, "target_modules": ["gate_proj"], "layers_to_transform": [1]},
}


def make_adapter(base, folder, **settings):
    """A random adapter over a model folder, saved by peft; returns its own log-probabilities of IDS. [T − 1]"""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)).eval()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:  # modules saved whole, too, are others than the base's
            noise = torch.randn_like(parameter)
            parameter.data = parameter.data + 0.05 * noise if "modules_to_save" in name else 0.2 * noise
    adapted.save_pretrained(folder)
    with torch.inference_mode():
        logits = adapted(torch.tensor(IDS)[None]).logits[0, :-1]
    return logits.double().log_softmax(-1).gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]


def nlls(name, *, backend="auto", streamed=False, lane=Lane.FP32):
    operators = resolve(backend, "cpu", lane)
    model = load_model(locate(name), operators, streamed=streamed)
    plan = plan_batch([Request(IDS, np.arange(1, len(IDS)))])
    scores = Engine(model.traits, model.weights, operators).run(plan.batch)
    model.weights.close()
    return scores.nll_N


@pytest.mark.parametrize("name", LORAS)
def test_an_adapted_model_scores_as_peft_computes_it(tmp_path, name):
    base = make_llama(tmp_path / "base", intermediate_size=100)
    wanted = make_adapter(base, tmp_path / "lora", **LORAS[name])
    adapted = f"{base} + {tmp_path / 'lora'}"
    got = nlls(adapted)
    assert (got.double() + wanted).abs().max() < 1e-4
    assert (got - nlls(str(base))).abs().max() > 1e-2  # the adapter does something
    assert torch.equal(nlls(adapted, streamed=True), got)
    assert (nlls(adapted, backend="reference").double() + wanted).abs().max() < 1e-4


QWEN_3_5_LORAS = {
    "all projections": {"r": 4, "lora_alpha": 9, "target_modules": "all-linear"},
    "the delta rule's": {"r": 3, "target_modules": ["in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"]},
    "queries with the output's gate": {"r": 5, "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("name", QWEN_3_5_LORAS)
def test_adapters_of_a_hybrid(tmp_path, name):
    base = make_case(tmp_path / "base", "qwen3.5, tied, delta rule last, wide filter")
    wanted = make_adapter(base, tmp_path / "lora", **QWEN_3_5_LORAS[name])
    got = nlls(f"{base} + {tmp_path / 'lora'}")
    assert (got.double() + wanted).abs().max() < 1e-4
    assert (got - nlls(str(base))).abs().max() > 1e-2


def test_over_a_base_in_four_bits(tmp_path):
    """Against peft over the same de-quantised base: what is merged is the fp32 sum, which no 4-bit model could hold."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    plain = make_llama(tmp_path / "plain", dtype=torch.bfloat16, **sizes)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=settings, device_map="cpu", dtype=torch.bfloat16
    ).save_pretrained(tmp_path / "nf4")
    files = open_model(locate(str(tmp_path / "nf4")))[1]
    save_file({name: files.read(name) for name in files.shapes}, plain / "model.safetensors", {"format": "pt"})
    wanted = make_adapter(plain, tmp_path / "lora", r=8, target_modules="all-linear")
    assert (nlls(f"{tmp_path / 'nf4'} + {tmp_path / 'lora'}").double() + wanted).abs().max() < 1e-4


def test_the_bf16_lane_rounds_the_sum_once(tmp_path):
    base = make_llama(tmp_path / "base", dtype=torch.bfloat16)
    make_adapter(base, tmp_path / "lora", r=4, target_modules=["up_proj"])
    name = "model.layers.0.mlp.up_proj.weight"
    located = locate(f"{base} + {tmp_path / 'lora'}")
    _, files = open_model(located)
    parts = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    prefix = "base_model." + name.replace("model.layers", "model.model.layers").removesuffix("weight")
    up, down = parts[prefix + "lora_B.weight"].double(), parts[prefix + "lora_A.weight"].double()
    whole = load_file(base / "model.safetensors")[name].double() + up @ down * 8 / 4
    rounded = torch.empty(whole.shape, dtype=torch.bfloat16)
    files.read_into(name, rounded)
    assert (files.read(name).double() - whole).abs().max() < 1e-5
    assert torch.equal(rounded, files.read(name).bfloat16())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "type IA3 cannot be merged; supported: LORA"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"use_dora": True}, "use_dora = True"),
        ({"bias": "all"}, "bias = all"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 changes the base"),
        ({"lora_alpha": "much"}, "lora_alpha is 'much'"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, expected a number that fp32 can hold"),
        ({"lora_alpha": 1e39}, "lora_alpha is 1e\\+39, expected a number that fp32 can hold"),
        ({"alpha_pattern": [8]}, "'alpha_pattern' is \\[8\\], expected an object"),
        ({"alpha_pattern": {"(": 8}}, "'\\(' in 'alpha_pattern' is no regular expression"),
        ({"use_rslora": "false"}, "'use_rslora' is 'false', expected true or false"),
    ],
)
def test_what_cannot_be_merged_is_refused_by_name(tmp_path, changes, message):
    base = make_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "lora", r=4, target_modules=["up_proj"])
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=message):
        nlls(f"{base} + {tmp_path / 'lora'}")


def test_factors_of_rank_0(tmp_path):
    base = make_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "lora", r=4, target_modules=["up_proj"])
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(path).items()
    save_file({name: (part[:0] if "lora_A" in name else part[:, :0]).contiguous() for name, part in tensors}, path)
    with pytest.raises(ModelError, match="up_proj' has LoRA factors of rank 0"):
        nlls(f"{base} + {tmp_path / 'lora'}")


def test_tensors_that_are_not_the_models(tmp_path):
    base, other = make_llama(tmp_path / "base"), make_llama(tmp_path / "other", hidden_size=96)
    make_adapter(other, tmp_path / "lora", r=4, target_modules=["up_proj"])
    with pytest.raises(ModelError, match=r"up_proj\.weight' \[96, 96\], and the model has \[96, 48\]"):
        nlls(f"{base} + {tmp_path / 'lora'}")
    make_adapter(base, tmp_path / "half", r=4, target_modules=["up_proj"])
    path = tmp_path / "half" / "adapter_model.safetensors"
    parts = load_file(path)
    missing = next(name for name in parts if "lora_A" in name)
    save_file({name: value for name, value in parts.items() if name != missing}, path)
    with pytest.raises(ModelError, match=f"'{missing}' is missing"):
        nlls(f"{base} + {tmp_path / 'half'}")
    save_file({name: torch.full_like(value, torch.nan) for name, value in parts.items()}, path)
    with pytest.raises(ModelError, match="holds NaN"):
        nlls(f"{base} + {tmp_path / 'half'}")


def test_a_tied_models_embedding_is_not_changed(tmp_path):
    base = make_llama(tmp_path / "base", tie_word_embeddings=True)
    make_adapter(base, tmp_path / "lora", r=4, target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match="one matrix for both"):
        nlls(f"{base} + {tmp_path / 'lora'}")


def test_names(tmp_path):
    base = make_llama(tmp_path / "base")
    make_adapter(base, tmp_path / "lora", r=4, target_modules=["up_proj"])
    located = locate(f"{base} + {tmp_path / 'lora'}")
    assert (located.model_id, located.adapter) == ("base+lora", tmp_path / "lora")
    assert with_adapters(["m", "n"], ["a", "none"]) == ("m + a", "m", "n + a", "n")
    assert with_adapters(["m"], []) == ("m",)
    with pytest.raises(UsageError, match="name is empty"):
        with_adapters(["m"], [" "])
    with pytest.raises(ModelError, match="it is an adapter: name its base with --model"):
        locate(str(tmp_path / "lora"))
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        locate(f"{base} + {base}")
    with pytest.raises(ModelError, match="no such folder"):
        locate(f"{base} + {tmp_path / 'lore'}")
