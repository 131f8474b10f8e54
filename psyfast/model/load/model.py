"""A located model, loaded: traits, weights resident or streamed, and what the manifest says of it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from psyfast.errors import ModelError
from psyfast.model.load.adapter import AdaptedFiles, read_adapter
from psyfast.model.load.assembly import Assembler
from psyfast.model.load.config import quantisation_of, traits_from_config, traits_from_gguf
from psyfast.model.load.config_file import read_config
from psyfast.model.load.locate import Located
from psyfast.model.load.names import EMBEDDING
from psyfast.model.load.quantised.files import QuantisedFiles
from psyfast.model.load.streamed import READ_AHEAD, StreamedWeights
from psyfast.model.load.tensors import GgufFile, SafetensorsFiles, TensorFiles
from psyfast.model.load.weights import ResidentWeights, load_resident
from psyfast.model.traits import Traits
from psyfast.ops.registry import Operators


@dataclass(frozen=True)
class LoadedModel:
    """A model that can be run. stored_as: the weight files' types, most frequent first (`BF16`, `Q4_1`)."""

    model_id: str
    traits: Traits
    weights: ResidentWeights | StreamedWeights
    files: tuple[Path, ...]
    stored_as: tuple[str, ...]


def open_model(located: Located) -> tuple[Traits, TensorFiles]:
    """Traits and tensor files of a model, without reading its matrices; ModelError where it cannot be loaded."""
    traits, files = _open_base(located)
    if located.adapter is None:
        return traits, files
    return traits, AdaptedFiles(files, read_adapter(located.adapter), tied_head=traits.tied_head)


def traits_of(located: Located) -> Traits:
    """Traits of a model whose weights need not be there: its configuration is read alone (of a GGUF file, its header)."""
    if located.kind == "gguf":
        return open_model(located)[0]
    return traits_from_config(read_config(located.path), str(located.path))


def stored_size(located: Located, num_params: int) -> tuple[int, int]:
    """Bytes of the weights' files, and of a value of the embedding; where they are not there, what the configuration says of them."""
    try:
        _, files = open_model(located)
    except ModelError:
        if located.kind == "gguf" or any(located.path.glob("*.safetensors")):
            raise
    else:
        return sum(path.stat().st_size for path in files.files), files.dtype(EMBEDDING).itemsize
    config = read_config(located.path)
    said = config.get("dtype", config.get("torch_dtype", "bfloat16"))
    value_bytes = 4 if said == "float32" else 2
    method = quantisation_of(config, str(located.path))
    bits = 8 * value_bytes
    if method:
        is_8 = method.get("quant_method") == "fp8" or method.get("load_in_8bit")
        bits = 8 if is_8 else int(method.get("bits", 4))
    return num_params * bits // 8, value_bytes


def _open_base(located: Located) -> tuple[Traits, TensorFiles]:
    where = str(located.path)
    if located.kind == "gguf":
        gguf_file = GgufFile(located.path)
        return traits_from_gguf(gguf_file.metadata, gguf_file.shapes, where), gguf_file
    config = read_config(located.path)
    traits, files = traits_from_config(config, where), SafetensorsFiles(located.path)
    settings = quantisation_of(config, where)
    return traits, QuantisedFiles(files, settings, where) if settings else files


def load_model(
    located: Located, operators: Operators, *, streamed: bool = False, read_ahead: int = READ_AHEAD
) -> LoadedModel:
    """Read a model for a lane, on a device; streamed=True leaves its layers in their files until they are run."""
    traits, files = open_model(located)
    lane, device, where = operators.lane, operators.device, str(located.path)
    weights: ResidentWeights | StreamedWeights
    try:
        if streamed:
            assembler = Assembler(files, traits, lane, device, where)
            weights = StreamedWeights(assembler, traits.num_layers, operators, read_ahead=read_ahead)
        else:
            weights = load_resident(files, traits, lane, device, where, operators.prepare_layer)
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        raise ModelError(f"{located.path}: cannot be loaded into memory ({error}); use a smaller model") from error
    return LoadedModel(located.model_id, traits, weights, files.files, files.stored_as())


def file_hashes(files: tuple[Path, ...]) -> dict[str, str]:
    """SHA-256 of each file, by its name."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip((path.name for path in files), pool.map(_sha256, files), strict=True))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
