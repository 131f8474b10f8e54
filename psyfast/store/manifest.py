"""The manifest: how a run was made, enough to make it again, and what a resumed run may not change."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from psyfast.errors import RunError

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "gguf", "numpy", "pyarrow", "datasets")

_FIXED = (
    ("config.studies", "--study"),
    ("config.limit", "--limit"),
    ("config.on_bad_row", "--on-bad-row"),
    ("config.options", "--options"),
    ("config.subset", "--subset"),
    ("config.trials", "where the trials come from"),
    ("config.seed", "--seed"),
    ("data.sha256", "the transcripts' hash"),
    ("config.protocol", "--protocol"),
    ("config.lane", "--lane"),
    ("config.per_token", "--per-token"),
    ("config.context_limit", "--context-limit"),
    ("config.share", "prefix sharing"),
    ("compare.base", "the first model of the comparison"),
    ("compare.post", "the second model of the comparison"),
    ("compare.goal.until", "--until"),
    ("compare.goal.level", "--level"),
    ("compare.goal.every", "--every"),
    ("compare.seed", "--seed"),
    ("arithmetic.device", "--device"),
    ("arithmetic.operators", "the backend"),
    ("arithmetic.isa", "the ISA level"),
)

_BEFORE = {"config.options": "data", "config.trials": "data"}
"""What runs had whose manifest was written before there was a choice."""

_FIXED_BY_MODEL = (
    ("weights_sha256", "weights"),
    ("tokenizer_sha256", "tokenizer"),
    ("traits", "configuration"),
    ("window_slots", "window slots"),
)


def num_transcripts_of(manifest: Mapping[str, Any]) -> int:
    """Transcripts that a finished run holds: all that were read, or those that a comparison scored before it stopped."""
    compared = manifest.get("compare")
    return int(manifest["data"]["num_transcripts"] if compared is None else compared["looks"][-1]["num_scored"])


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries whose results enter the scores."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The processor, its cores, memory and system."""
    import psutil

    return {
        "processor": _processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def command_line() -> list[str]:
    """The command as it was typed, its program by name."""
    return [Path(sys.argv[0]).name, *sys.argv[1:]]


def require_same(old: Mapping[str, Any], new: Mapping[str, Any], task: str) -> None:
    """RunError naming both values of whatever a resumed run may not change; `task` opens the message."""
    for path, label in _FIXED:
        before, now = _at(old, path), _at(new, path)
        before = _BEFORE.get(path) if before is None else before
        if before != now:
            raise RunError(
                f"{task}: {label} was {_shown(before)} and is now {_shown(now)}; use what the run was started with, "
                "or give -o another folder"
            )


def require_same_data(old: Mapping[str, Any], new: Mapping[str, Any], task: str) -> None:
    """RunError naming both hashes if the data at hand are not those of a run."""
    before, now = _at(old, "data.sha256"), _at(new, "data.sha256")
    if before != now:
        raise RunError(f"{task}: the transcripts had sha256 {before} and have {now} now; bring back what it read")


def require_same_renderings(old: Mapping[str, Any], new: Mapping[str, Any], task: str) -> None:
    """RunError if a condition that a run has now makes other texts of its transcripts; both are `conditions`."""
    for name, now in new.items():
        before = old.get("conditions", {}).get(name, {})
        pairs = [(before, now)]
        if "by_template" in now:
            known = before.get("by_template", {})
            pairs = [(known.get(template, {}), one) for template, one in now["by_template"].items()]
        for one_before, one_now in pairs:
            if one_before and one_before["sha256"] != one_now["sha256"]:
                raise RunError(
                    f"{task}: the condition '{name}' makes other texts than the run was started with (another "
                    "function or version of psyfast); use what it was started with, or give -o another folder"
                )


def arithmetic_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two runs computed with that is not the same, a phrase each: reasons why bits may differ."""
    paths = ("lane", "device", "isa", "threads", *(f"operators.{name}" for name in _at(new, "arithmetic.operators")))
    pairs = [(path, _at(old, f"arithmetic.{path}"), _at(new, f"arithmetic.{path}")) for path in paths]
    pairs += [(name, _at(old, f"libraries.{name}"), version) for name, version in new["libraries"].items()]
    return [f"{path.removeprefix('operators.')}: {before} and {now}" for path, before, now in pairs if before != now]


def require_same_model(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> None:
    """RunError if a model of the same name has other weights, tokenizer or windows than the run's."""
    for key, label in _FIXED_BY_MODEL:
        if old.get(key) != new.get(key):
            raise RunError(
                f"{where}: the {label} of model '{new['model_id']}' were {_shown(old.get(key))} and are now "
                f"{_shown(new.get(key))}; use the model that the run was started with, or give -o another folder"
            )


def _at(manifest: Mapping[str, Any], path: str) -> Any:
    value: Any = manifest
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"
