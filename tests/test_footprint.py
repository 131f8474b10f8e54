"""What a model is counted to take is what it takes."""

import pytest
import torch

from psyfast.footprint import model_sizes
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from tests.family_models import make_case
from tests.tiny import make_llama

SHAPES = [
    {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 320},
    {"hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 100},
    {"hidden_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 512},
]


def bytes_of(value):
    """Of every tensor in a record."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, tuple):
        return sum(map(bytes_of, value))
    return sum(bytes_of(part) for part in vars(value).values()) if hasattr(value, "__dataclass_fields__") else 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_prepared_layer_takes_what_was_counted(tmp_path, shape, lane, backend):
    folder = make_llama(tmp_path, dtype=torch.bfloat16, **shape)
    operators = resolve(backend, "cpu", lane)
    model = load_model(locate(str(folder)), operators)
    sizes = model_sizes(model.traits, operators, model.weights.embedding.dtype.itemsize)
    taken = bytes_of(model.weights.layer(0))
    vectors = 16 * model.traits.hidden_size + 4096  # norms and frequencies, not counted
    assert taken - vectors <= sizes.layer_bytes <= taken
    assert sizes.num_layers == 3


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_layer_of_experts_takes_what_was_counted(tmp_path, lane, backend):
    """All of them, and the router; a layer with an MLP in its place takes less than is counted for any."""
    folder = make_case(
        tmp_path, "qwen3 moe, tied, MLPs between, yarn, biases", hidden_size=128, head_dim=64, moe_intermediate_size=48
    )
    operators = resolve(backend, "cpu", lane)
    model = load_model(locate(str(folder)), operators)
    sizes = model_sizes(model.traits, operators, model.weights.embedding.dtype.itemsize)
    without, with_experts = (bytes_of(model.weights.layer(idx)) for idx in (0, 1))
    vectors = 16 * 128 + 4096 + 16 * 70  # norms, frequencies and the experts' addresses, not counted
    assert with_experts - vectors <= sizes.layer_bytes <= with_experts
    assert without < sizes.layer_bytes / 5


def test_a_slot_holds_at_least_what_the_engine_keeps():
    from psyfast.engine import allocate_pages
    from psyfast.model.traits import RopeTraits, Traits
    from psyfast.plan.batch import Request, plan_batch

    traits = Traits("x", 2, 576, 1536, 9, 3, 64, 49_152, 8192, 1e-5, RopeTraits())
    batch = plan_batch([Request(torch.arange(6400).numpy(), torch.arange(1, 50).numpy())]).batch
    for lane in Lane:
        operators = resolve("cpu", "cpu", lane)
        pages = allocate_pages(batch.pages, batch.positions_T, traits, operators)
        operand = 4 if lane is Lane.FP32 else 2
        residual, heads = 4 * 576, 2 * operand * 9 * 64
        kept = sum(bytes_of(part) for part in vars(pages).values()) / 6400 + residual + heads
        assert kept <= model_sizes(traits, operators, 2).slot_bytes <= 1.8 * kept  # the allocator keeps some
