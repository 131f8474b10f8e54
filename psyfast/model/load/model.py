"""A located model, loaded: traits, weights resident or streamed, and what the manifest says of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from psyfast.errors import ModelError
from psyfast.model.load.adapter import AdaptedFiles, brings_a_head, changed_by, read_adapter
from psyfast.model.load.assembly import Assembler
from psyfast.model.load.checks import check_tensors, check_tied_head
from psyfast.model.load.config import quantisation_of, traits_from_config
from psyfast.model.load.config_file import read_config
from psyfast.model.load.config_values import positive_at
from psyfast.model.load.fused_experts import FusedExperts, check_fused, refuse_fused
from psyfast.model.load.gguf_config import traits_from_gguf
from psyfast.model.load.in_step import ModelsInStep
from psyfast.model.load.layer_parts import CommonParts
from psyfast.model.load.locate import Located
from psyfast.model.load.names import EMBEDDING
from psyfast.model.load.pinned import PinnedWeights, load_pinned
from psyfast.model.load.quantised.files import QuantisedFiles, method_of
from psyfast.model.load.shared import SharedFiles
from psyfast.model.load.streamed import READ_AHEAD, StreamedWeights, stream
from psyfast.model.load.tensors import GgufFile, SafetensorsFiles, TensorFiles
from psyfast.model.load.weights import ResidentWeights, load_resident
from psyfast.model.traits import Traits
from psyfast.ops.registry import Operators

WeightsOfModel = ResidentWeights | StreamedWeights | PinnedWeights


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be run. stored_as: the weight files' types, most frequent first (`BF16`, `Q4_1`).

    keeps_head: its final norm and LM head are its base's.
    """

    model_id: str
    traits: Traits
    weights: WeightsOfModel
    files: tuple[Path, ...]
    stored_as: tuple[str, ...]
    keeps_head: bool = True


def open_model(located: Located) -> tuple[Traits, TensorFiles]:
    """Traits and tensor files of a model, without reading its matrices; ModelError where it cannot be loaded."""
    traits, files = _open_base(located)
    return traits, _adapted(files, located, traits)


def traits_of(located: Located) -> Traits:
    """Traits of a model whose weights need not be there: its configuration is read alone (of a GGUF file, its header).

    Raises ModelError for a model that would not load, as far as its configuration says so.
    """
    if located.kind == "gguf":
        return open_model(located)[0]
    config, where = read_config(located.path), str(located.path)
    if settings := quantisation_of(config, where):
        method_of(settings, where)
    return traits_from_config(config, where)


def stored_size(located: Located, num_params: int) -> tuple[int, int]:
    """Bytes of the weights' files, and of a value of the embedding; where they are not there, what the configuration says of them."""
    try:
        traits, files = open_model(located)
        check_tensors(files, traits, str(located.path))
    except ModelError:
        if located.kind == "gguf" or any(located.path.glob("*.safetensors")):
            raise
    else:
        return sum(path.stat().st_size for path in files.files), files.dtype(EMBEDDING).itemsize
    config = read_config(located.path)
    said = config.get("dtype", config.get("torch_dtype", "bfloat16"))
    value_bytes = 4 if said == "float32" else 2
    settings = quantisation_of(config, str(located.path))
    bits = 8 * value_bytes
    if settings:
        is_8 = settings.get("quant_method") == "fp8" or settings.get("load_in_8bit")
        bits = 8 if is_8 else positive_at(settings, "bits", str(located.path), default=4)
    return num_params * bits // 8, value_bytes


def _open_base(located: Located) -> tuple[Traits, TensorFiles]:
    where = str(located.path)
    if located.kind == "gguf":
        gguf_file = GgufFile(located.path)
        return traits_from_gguf(gguf_file.metadata, gguf_file.shapes, where), gguf_file
    config = read_config(located.path)
    traits, stored = traits_from_config(config, where), SafetensorsFiles(located.path)
    settings = quantisation_of(config, where)
    files: TensorFiles = QuantisedFiles(stored, settings, where) if settings else stored
    if traits.experts is None:
        return traits, files
    if not traits.experts.biases:
        refuse_fused(stored, where)
        return traits, files
    check_fused(stored, traits, where, as_blocks=settings.get("quant_method") == "mxfp4")
    return traits, FusedExperts(files)


def load_model(
    located: Located, operators: Operators, *, streamed: bool = False, read_ahead: int = READ_AHEAD
) -> LoadedModel:
    """Read a model for a lane, on a device; streamed=True leaves its layers in their files until they are run."""
    return load_together([located], operators, streamed=streamed, read_ahead=read_ahead)[0]


def load_together(
    located: Sequence[Located], operators: Operators, *, streamed: bool = False, read_ahead: int = READ_AHEAD
) -> list[LoadedModel]:
    """The same of one base under several adapters (None among them: as it is), which is read once a layer for all.

    Streamed ones are to be run in step (psyfast.engine.run_together).
    """
    base, where = located[0], str(located[0].path)
    assert all(one.path == base.path for one in located)
    traits, files = _open_base(base)
    check_tied_head(files, traits, where)
    common = common_parts(located, traits)
    shared = SharedFiles(files, common.read_again(files.shapes)) if len(located) > 1 else None
    try:
        adapted = [_adapted(shared or files, one, traits) for one in located]

        def in_step(device: torch.device) -> ModelsInStep:
            assemblers = [Assembler(one, traits, operators.lane, device, where) for one in adapted]
            return ModelsInStep(assemblers, common, operators.prepare_layer, shared)

        weights = _weights(in_step, operators.device, read_ahead if streamed else None)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        raise ModelError(f"{where}: cannot be loaded ({error}); where memory is short, use a smaller model") from error
    return [
        LoadedModel(one.model_id, traits, held, its.files, its.stored_as(), num_heads_of([one]) == 1)
        for one, held, its in zip(located, weights, adapted, strict=True)
    ]


def _weights(
    in_step: Callable[[torch.device], ModelsInStep], device: torch.device, read_ahead: int | None
) -> Sequence[WeightsOfModel]:
    """Of models whose tensors can be read to any device. read_ahead: None: all layers stay in memory."""
    models = in_step(device)
    if read_ahead is None:
        return load_resident(models)
    if device.type == "cuda":
        return load_pinned(in_step(torch.device("cpu")), models, device)
    return stream(models, read_ahead)


def _adapted(files: TensorFiles, located: Located, traits: Traits) -> TensorFiles:
    if located.adapter is None:
        return files
    return AdaptedFiles(files, read_adapter(located.adapter), tied_head=traits.tied_head)


def common_parts(located: Sequence[Located], traits: Traits) -> CommonParts:
    """What models of one base have in common, by the names of the tensors that their adapters change."""
    return CommonParts([frozenset() if one.adapter is None else changed_by(one.adapter) for one in located], traits)


def num_heads_of(located: Sequence[Located]) -> int:
    """LM heads that models of one base have between them: the base's, and each that an adapter changes."""
    return 1 + sum(one.adapter is not None and brings_a_head(one.adapter) for one in located)


def file_hashes(files: tuple[Path, ...]) -> dict[str, str]:
    """SHA-256 of each file, by its name. A file that did not change since is not read again."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip((path.name for path in files), pool.map(_sha256, files), strict=True))


def _sha256(path: Path) -> str:
    found = path.stat()
    return _sha256_of(path, found.st_size, found.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
