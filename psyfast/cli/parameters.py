"""Arguments and options that commands share, and what is made of their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from psyfast.errors import UsageError

DEFAULT_MODEL = "smollm2-135m-instruct"

Data = Annotated[
    list[str] | None,
    typer.Argument(metavar="DATA", help="Transcripts: .jsonl[.gz|.zip], .parquet, a folder of studies, a data set id."),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Alias, Hugging Face folder, .gguf file or hub id; several times or as a comma list. [default: smollm2-135m-instruct]",
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="ADAPTER",
        help="LoRA adapter over each model: a folder or hub id, or none for the model itself; several times or as a comma list.",
    ),
]
Protocol = Annotated[str, typer.Option(metavar="PROTOCOL", help="How responses are found: exact | paper.")]
LaneOption = Annotated[str, typer.Option("--lane", metavar="LANE", help="Arithmetic: bf16 | fp32.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="The run folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
FromManifest = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Make the run of this manifest.json again, into --out, and compare the bits."),
]
Studies = Annotated[
    list[str] | None,
    typer.Option("--study", metavar="STUDY", help="Only this study; several times or as a comma list."),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="At most so many transcripts.")]
OnBadRowOption = Annotated[str, typer.Option(metavar="ACTION", help="A row that cannot be read: error | skip.")]
ContextLimit = Annotated[int | None, typer.Option(metavar="N", help="Tokens of context, instead of the model's own.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Threads of the CPU. [default: all cores]")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps.")]
Backend = Annotated[str, typer.Option(metavar="BACKEND", help="auto | reference | cpu | triton | cuda (docs/gpu.md).")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a model from the hub.")]
DataRevision = Annotated[str | None, typer.Option(metavar="NAME", help="Revision of a data set from the hub.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Seed of whatever is drawn.")]
OptionsFrom = Annotated[
    str, typer.Option("--options", metavar="SOURCE", help="Choice sets: data | auto (found where the data bring none).")
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        metavar="NAME",
        help="plain | chat | persona | shuffled-persona | discrete | no-instructions | no-history | history=K | relabel; "
        "several times or as a comma list. [default: plain]",
    ),
]
Subset = Annotated[str | None, typer.Option(metavar="NAME", help="test: the study's evaluation split of DATA.")]
PerToken = Annotated[bool, typer.Option("--per-token", help="Also each response's token ids and their NLLs.")]
Workers = Annotated[int, typer.Option(metavar="N", help="Processes that tokenise, beside this one.")]
WindowSlots = Annotated[
    int | None,
    typer.Option(metavar="N", help="Tokens planned and run together. [default: 16384, more or less as memory allows]"),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Of the whole process (with --device cuda: of the GPU): 3GB, 2.5GiB, or bytes. [default: the memory at hand]",
    ),
]
Weights = Annotated[
    str,
    typer.Option(metavar="MODE", help="auto | resident | streamed (read layer by layer, for models beyond memory)."),
]
IsaOption = Annotated[
    str | None, typer.Option("--isa", metavar="LEVEL", help="Native level: avx512_bf16 | avx512 | avx2 | portable.")
]
NoSparse = Annotated[
    bool, typer.Option("--no-sparse", help="Compute rows that nothing depends on, too, for comparison.")
]
NoJoin = Annotated[bool, typer.Option("--no-join", help="Keep short branches apart in attention, for comparison.")]
NoShare = Annotated[bool, typer.Option("--no-share", help="Compute shared prefixes anew each time, for comparison.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def names(values: list[str] | None) -> tuple[str, ...]:
    """Names given several times or as comma lists; an empty one stays, to be refused."""
    return tuple(name.strip() for value in values or [] for name in value.split(","))


def models(values: list[str] | None) -> tuple[str, ...]:
    """Models given several times or as comma lists; a path that is there keeps its commas."""
    return tuple(
        name for value in values or [] for name in ((value,) if value and Path(value).exists() else names([value]))
    )


def refuse_others(context: typer.Context, allowed: set[str], because: str) -> None:
    """UsageError naming whatever was asked for that has no bearing, and why."""
    given = [
        parameter.opts[0] if parameter.opts[0].startswith("-") else "DATA"
        for parameter in context.command.params
        if parameter.name not in allowed
        and parameter.name is not None
        and str(context.get_parameter_source(parameter.name)).endswith("COMMANDLINE")
    ]
    if given:
        raise UsageError(f"{because}; leave out {', '.join(given)}")
