"""Streamed weights: the resident ones' bits, a bounded number of layers at a time, and a thread that ends."""

import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from psyfast.engine import Engine
from psyfast.errors import ModelError
from psyfast.model.load.assembly import Assembler
from psyfast.model.load.config import traits_from_config
from psyfast.model.load.config_file import read_config
from psyfast.model.load.in_step import ModelsInStep
from psyfast.model.load.layer_parts import CommonParts
from psyfast.model.load.locate import locate
from psyfast.model.load.model import load_model, open_model
from psyfast.model.load.streamed import stream
from psyfast.ops.records import Lane
from psyfast.ops.registry import resolve
from psyfast.plan.batch import Request, plan_batch
from tests.gguf_files import write_model
from tests.tiny import make_llama

NUM_LAYERS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(
        tmp_path_factory.mktemp("models") / "sharded",
        shard="100KB",
        num_hidden_layers=NUM_LAYERS,
        hidden_size=64,
        num_attention_heads=4,
    )


@pytest.fixture(scope="module")
def gguf_file(folder):
    path = folder.parent / "model.gguf"
    write_model(path, folder, traits_from_config(read_config(folder), "here"), kind="Q8_0")
    return path


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    left = [thread for thread in threading.enumerate() if thread.name.startswith("psyfast-weights")]
    for thread in left:  # one that was told to end may still be about it
        thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in left)


def batch_of(seed):
    rng = np.random.default_rng(seed)
    requests = [Request(rng.integers(2, 400, size), np.arange(1, size, 3)) for size in (90, 7, 200)]
    return plan_batch(requests).batch


def source(path, operators, **settings):
    traits, files = open_model(locate(str(path)))
    assembler = Assembler(files, traits, operators.lane, operators.device, "here")
    models = ModelsInStep([assembler], CommonParts([()], traits), operators.prepare_layer)
    return stream(models, **settings)[0]


def nlls(engine, seed=0):
    scores = engine.run(batch_of(seed))
    assert torch.isfinite(scores.nll_N).all()
    return torch.cat([scores.nll_N, scores.entropy_N])


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("stored", ["folder", "gguf_file"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_streamed_layers_give_the_resident_ones_bits(stored, lane, backend, request):
    path = request.getfixturevalue(stored)
    operators = resolve(backend, "cpu", lane)
    resident = load_model(locate(str(path)), operators)
    wanted = Engine(resident.traits, resident.weights, operators)
    with load_model(locate(str(path)), operators, streamed=True).weights as weights:
        engine = Engine(resident.traits, weights, operators)
        for seed in (0, 1, 0):
            assert torch.equal(nlls(engine, seed), nlls(wanted, seed))


@pytest.mark.parametrize("read_ahead", [0, 1, 2, NUM_LAYERS + 3])
def test_so_many_layers_are_in_memory_and_no_more(folder, read_ahead):
    alive, counts = set(), []

    def prepare_layer(layer, num_threads=None, ready=()):
        prepared = operators.prepare_layer(layer, num_threads, ready)
        number = len(counts)
        alive.add(number)
        weakref.finalize(prepared, alive.discard, number)
        counts.append(len(alive))
        return prepared

    operators = resolve("cpu", "cpu", Lane.BF16)
    traits, _ = open_model(locate(str(folder)))
    with source(folder, replace(operators, prepare_layer=prepare_layer), read_ahead=read_ahead) as weights:
        engine = Engine(traits, weights, operators)
        for seed in range(3):
            nlls(engine, seed)
    assert max(counts) <= min(NUM_LAYERS, read_ahead + 1) and len(counts) >= 3 * NUM_LAYERS
    assert not alive


def test_a_batch_that_was_broken_off_leaves_nothing_behind(folder):
    operators = resolve("cpu", "cpu", Lane.BF16)
    traits, _ = open_model(locate(str(folder)))
    with source(folder, operators) as weights:
        engine = Engine(traits, weights, operators)
        wanted = nlls(engine)

        def stop(layer_idx):
            if layer_idx == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.run(batch_of(0), stop)
        assert torch.equal(nlls(engine), wanted)


def test_a_layer_with_nan_is_refused_when_it_is_reached(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = make_llama(tmp_path / "broken", num_hidden_layers=NUM_LAYERS) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.3.self_attn.v_proj.weight"][2, 5] = torch.nan
    save_file(tensors, path)
    with source(tmp_path / "broken", resolve("cpu")) as weights:
        for layer_idx in range(3):
            weights.layer(layer_idx)
        for _ in range(2):
            with pytest.raises(ModelError, match=r"layers\.3\.self_attn\.v_proj\.weight' holds NaN"):
                weights.layer(3)


def test_a_file_that_is_cut_short_meanwhile_is_an_error_and_no_signal(folder, tmp_path):
    path = make_llama(tmp_path / "cut", num_hidden_layers=NUM_LAYERS) / "model.safetensors"
    with source(tmp_path / "cut", resolve("cpu"), read_ahead=0) as weights:
        weights.layer(0)
        with path.open("r+b") as file:
            file.truncate(5000)
        with pytest.raises(ModelError, match=r"model\.safetensors: was changed"):
            weights.layer(1)


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_what_the_thread_stumbles_over_reaches_the_caller(folder, error):
    def prepare_layer(layer, num_threads=None, ready=()):
        raise error

    with source(folder, replace(resolve("cpu"), prepare_layer=prepare_layer)) as weights:
        with pytest.raises(ModelError, match="layer 0 cannot be read and prepared") as caught:
            weights.layer(0)
        assert caught.value.__cause__ is error


def test_the_thread_ends_with_an_exception_and_without_close(folder):
    with pytest.raises(ZeroDivisionError), source(folder, resolve("cpu")) as weights:
        weights.layer(0)
        raise ZeroDivisionError
    forgotten = source(folder, resolve("cpu"))
    forgotten.layer(0)
    del forgotten  # the fixture looks for its thread


def test_a_closed_source_says_no_more(folder):
    weights = source(folder, resolve("cpu"))
    weights.close()
    weights.close()
    with pytest.raises(RuntimeError):
        weights.layer(0)
