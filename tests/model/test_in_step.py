"""What adapters of one base have in common: prepared once, held once, and the same bits as of each alone."""

import gc
import shutil
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from psyfast.engine import Engine, run_together
from psyfast.footprint import model_sizes
from psyfast.model.load.adapter import AdaptedFiles, read_adapter
from psyfast.model.load.assembly import Assembler
from psyfast.model.load.in_step import ModelsInStep
from psyfast.model.load.locate import locate
from psyfast.model.load.model import common_parts, load_model, load_together, open_model
from psyfast.model.load.pinned import load_pinned
from psyfast.model.load.shared import SharedFiles
from psyfast.ops import cpu_linear
from psyfast.ops.gpu.operators import operators_over
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from psyfast.process_memory import taken_together
from tests.family_models import make_case
from tests.model.test_adapters import make_adapter
from tests.ops.plain_kernels import PlainKernels
from tests.tiny import make_llama

CPU = torch.device("cpu")
PARTS = ("attn_in", "attn_out", "mlp")
ADAPTERS = {
    "qv": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    "qv-too": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
    "one layer": {"r": 4, "target_modules": ["up_proj", "k_proj"], "layers_to_transform": [1]},
    "a norm": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["post_attention_layernorm"]},
    "embedding and head": {"r": 3, "target_modules": ["embed_tokens", "lm_head", "o_proj"]},
}
COPIES = [
    {"attn_in": 3 + 1, "attn_out": 1 + 1, "mlp": 1 + 1},  # of q, q and q; of o; of the norm; and the base's
    {"attn_in": 4 + 1, "attn_out": 1 + 1, "mlp": 2 + 1},
    {"attn_in": 3 + 1, "attn_out": 1 + 1, "mlp": 1 + 1},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in-step")
    base = make_llama(folder / "base", intermediate_size=100, hidden_size=96)
    for name, settings in ADAPTERS.items():
        make_adapter(base, folder / name, **settings)
    return folder


def located(folder):
    names = [f"{folder / 'base'} + {folder / name}" for name in ADAPTERS]
    return [locate(name) for name in (*names[:2], str(folder / "base"), *names[2:])]


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return plan_batch([Request(rng.integers(2, 400, size), np.arange(1, size, 3)) for size in (70, 9)]).batch


def engines(models, operators):
    return [Engine(one.traits, one.weights, operators) for one in models]


def close(models):
    for one in models:
        one.weights.close()


def tensors_of(record):
    if isinstance(record, torch.Tensor):
        return [record]
    if not is_dataclass(record):
        return []
    return [tensor for part in fields(record) for tensor in tensors_of(getattr(record, part.name))]


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("streamed", [None, 0, 1, 2])
@pytest.mark.parametrize("backend", ["cpu", "reference", "plain kernels"])
def test_the_bits_of_each_alone(folder, backend, streamed, lane):
    operators = operators_over(PlainKernels(), lane, CPU) if backend == "plain kernels" else resolve(backend, lane=lane)
    wanted = [Engine(one.traits, one.weights, operators) for one in (load_model(w, operators) for w in located(folder))]
    models = load_together(located(folder), operators, streamed=streamed is not None, read_ahead=streamed or 0)
    got = engines(models, operators)
    nlls = set()
    for seed in (0, 1):
        for one, alone in zip(run_together(got, batch(seed)), wanted, strict=True):
            assert torch.equal(one.nll_N, alone.run(batch(seed)).nll_N)
            nlls.add(tuple(one.nll_N.tolist()))
    assert len(nlls) == 2 * len(got)  # every model is another
    close(models)


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_is_held_is_what_is_planned(folder, backend, lane):
    operators = resolve(backend, lane=lane)
    models = load_together(located(folder), operators)
    traits, together = models[0].traits, taken_together(located(folder), models[0].traits, operators)
    assert [{part: copies[part] for part in PARTS} for copies in together.copies] == COPIES
    for layer_idx, copies in enumerate(COPIES):
        layers = [one.weights.layer(layer_idx) for one in models]
        assert {part: len({id(getattr(layer, part)) for layer in layers}) for part in PARTS} == copies
    held = {
        tensor.data_ptr(): tensor.numel() * tensor.itemsize
        for one in models
        for layer_idx in range(3)
        for tensor in tensors_of(one.weights.layer(layer_idx))
        if tensor.numel() >= 1000  # norms and tables are not counted
    }
    sizes = model_sizes(traits, operators, 4, together)
    assert sizes.all_layers_bytes == sum(held.values())
    alone = model_sizes(traits, operators, 4)
    assert alone.num_layers * alone.layer_bytes < sizes.all_layers_bytes < 6 * alone.num_layers * alone.layer_bytes


@pytest.mark.parametrize("streamed", [None, 0, 1])
def test_a_part_is_packed_once_for_all_that_have_it(folder, monkeypatch, streamed):
    packed, original = [], cpu_linear.pack  # a list's append is safe in threads

    def counting(name, *values, **settings):
        packed.append(name)
        return original(name, *values, **settings)

    monkeypatch.setattr(cpu_linear, "pack", counting)
    models = load_together(located(folder), resolve("cpu"), streamed=streamed is not None, read_ahead=streamed or 0)
    for layer_idx in range(3):
        for one in models:
            one.weights.layer(layer_idx)
    close(models)
    begun = COPIES[0] if streamed == 1 else dict.fromkeys(PARTS, 0)  # layer 0, read ahead for the next batch
    for name, part in {"qkv_proj": "attn_in", "o_proj": "attn_out", "gate_up_proj": "mlp", "down_proj": "mlp"}.items():
        wanted = sum(copies[part] for copies in COPIES)
        assert wanted <= packed.count(name) <= wanted + begun[part], name


def in_step(folder, operators):
    """The models, and what they read the base from."""
    traits, files = open_model(locate(str(folder / "base")))
    common = common_parts(located(folder), traits)
    shared = SharedFiles(files, common.read_again(files.shapes))
    adapted = [
        shared if one.adapter is None else AdaptedFiles(shared, read_adapter(one.adapter), tied_head=False)
        for one in located(folder)
    ]
    assemblers = [Assembler(one, traits, operators.lane, CPU, "here") for one in adapted]
    return ModelsInStep(assemblers, common, operators.prepare_layer, shared), shared


def test_nothing_is_held_once_all_models_have_a_layer(folder):
    models, shared = in_step(folder, resolve("cpu"))
    for which in range(models.num_models):
        assert models.under_way == (frozenset([1]) if which else frozenset())
        models.layer(1, which, 1)
    assert not models.under_way and not shared._kept
    models.layer(0, 3, 1)
    assert models.under_way == {0} and shared._kept
    assert all(name.startswith("model.layers.0.") for name in shared._kept)
    models.forget(0)
    assert not models.under_way and not shared._kept


def test_a_batch_that_was_broken_off_leaves_nothing_behind(folder):
    operators = resolve("cpu")
    models = load_together(located(folder), operators, streamed=True, read_ahead=1)
    got = engines(models, operators)
    wanted = [one.nll_N for one in run_together(got, batch())]

    class StoppedError(Exception):
        pass

    class Breaking:
        """The third model's weights, which fail at a layer."""

        def __init__(self, weights, at):
            self.weights, self.at = weights, at

        def layer(self, layer_idx):
            if layer_idx == self.at:
                raise StoppedError
            return self.weights.layer(layer_idx)

        def __getattr__(self, name):
            return getattr(self.weights, name)

    for at in range(3):
        broken = [*got]
        broken[2] = Engine(got[2].traits, Breaking(got[2].weights, at), operators, linear_nll=got[2].linear_nll)
        with pytest.raises(StoppedError):
            run_together(broken, batch())
        for one, before in zip(run_together(got, batch()), wanted, strict=True):
            assert torch.equal(one.nll_N, before)
        under_way = got[0].weights._layers._models.under_way
        assert under_way <= {0}, "layers are held that nobody will ask for"
    close(models)
    gc.collect()


def test_in_pinned_memory_a_part_stands_once(folder):
    operators = operators_over(PlainKernels(), Lane.BF16, CPU)
    models, _ = in_step(folder, operators)
    sources = load_pinned(models, models, CPU)
    blocks = [
        {part: {id(source.layers._layers[layer_idx]._parts[part][1]) for source in sources} for part in PARTS}
        for layer_idx in range(3)
    ]
    assert [{part: len(found) for part, found in of_layer.items()} for of_layer in blocks] == COPIES
    traits = load_model(located(folder)[0], operators).traits
    got = [Engine(traits, source, operators) for source in sources]
    for scores, one in zip(run_together(got, batch()), located(folder), strict=True):
        alone = load_model(one, operators)
        assert torch.equal(scores.nll_N, Engine(traits, alone.weights, operators).run(batch()).nll_N)


@pytest.mark.parametrize("streamed", [False, True])
def test_adapters_of_a_hybrid_in_step(tmp_path, streamed):
    base = make_case(tmp_path / "base", "qwen3.5, tied, delta rule last, wide filter")
    make_adapter(base, tmp_path / "a", r=3, target_modules=["in_proj_z", "up_proj"])
    make_adapter(base, tmp_path / "b", r=3, target_modules=["in_proj_b", "k_proj"])
    make_adapter(base, tmp_path / "c", r=3, target_modules=["q_proj"])
    names = [str(base), *(f"{base} + {tmp_path / name}" for name in "abc")]
    operators = resolve("cpu")
    models = load_together([locate(name) for name in names], operators, streamed=streamed)
    for scores, name in zip(run_together(engines(models, operators), batch()), names, strict=True):
        alone = load_model(locate(name), operators)
        assert torch.equal(scores.nll_N, Engine(alone.traits, alone.weights, operators).run(batch()).nll_N)
    close(models)


def test_a_plan_counts_a_layer_of_one_and_those_ahead_of_all(folder):
    operators = resolve("cpu")
    traits = open_model(located(folder)[0])[0]
    together = taken_together(located(folder), traits, operators)
    sizes, alone = model_sizes(traits, operators, 4, together), model_sizes(traits, operators, 4)
    assert sizes.layer_bytes == alone.layer_bytes
    assert alone.layer_bytes < sizes.ahead_bytes < sizes.all_layers_bytes < 3 * sizes.ahead_bytes + 1
    D, F = 96, 100
    assert together.kept_bytes == 4 * (D * (96 + 2 * 32) + D * 96 + 3 * D * F)  # layer 1: every matrix, in fp32
    on_gpu = replace(operators, isa=None, device=torch.device("cuda"))
    sizes, alone = model_sizes(traits, on_gpu, 4, together), model_sizes(traits, on_gpu, 4)
    assert sizes.layer_bytes == sizes.ahead_bytes == 6 * alone.layer_bytes  # buffers of each model's own


def test_a_name_that_peft_does_not_write_is_prepared_for_each(folder, tmp_path):
    """A tensor of the layer that is saved whole under a name of its own: nobody else takes the adapter's part."""
    shutil.copytree(folder / "qv", tmp_path / "whole")
    path = tmp_path / "whole" / "adapter_model.safetensors"
    base = load_file(folder / "base" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**load_file(path), f"base_model.model.{name}": base[name] * 1.5}, path)
    operators = resolve("cpu")
    names = [str(folder / "base"), f"{folder / 'base'} + {tmp_path / 'whole'}"]
    models = load_together([locate(one) for one in names], operators)
    mlps = [[one.weights.layer(layer_idx).mlp for one in models] for layer_idx in range(3)]
    assert [one is other for one, other in mlps] == [True, False, True]
