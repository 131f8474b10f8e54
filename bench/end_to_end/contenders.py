"""Who takes part: for each its worker, its Python, its lane, and the set-up that serves it best."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKERS = Path(__file__).parent / "workers"
PLAIN = ("plain", "lengths")


@dataclass(frozen=True)
class Contender:
    """worker: the script's stem. peer: the virtual environment it runs in; None is this one. kinds: of cases it takes.

    for_experts: differs from another contender in how it computes experts, and is left out where a model has none.
    """

    name: str
    worker: str
    lane: str
    peer: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = PLAIN
    needs_gguf: bool = False
    for_experts: bool = False

    def python(self, peers: Path) -> Path:
        """Its interpreter."""
        return Path(sys.executable) if self.peer is None else peers / self.peer / "bin" / "python"

    def is_installed(self, peers: Path) -> bool:
        """Whether its environment is there and finished (`make bench-peers`)."""
        return self.peer is None or (peers / self.peer / "installed").is_file()


CONTENDERS = (
    Contender("psyfast-bf16", "psyfast", "bf16", kinds=(*PLAIN, "options", "one-pass", "growth")),
    Contender("psyfast-fp32", "psyfast", "fp32"),
    Contender("psyfast-pairs-bf16", "psyfast_pairs", "bf16", settings={"together": True}, kinds=("pairs",)),
    Contender("psyfast-requests-bf16", "psyfast_pairs", "bf16", settings={"together": False}, kinds=("requests",)),
    Contender("transformers-bf16", "transformers", "bf16", settings={"keep": "all"}),
    Contender("transformers-bf16-kept", "transformers", "bf16", settings={"keep": "responses"}),
    Contender("transformers-fp32", "transformers", "fp32", settings={"keep": "all"}),
    Contender("transformers-fp32-kept", "transformers", "fp32", settings={"keep": "responses"}),
    *(
        Contender(
            f"transformers-{lane}-kept-eager",
            "transformers",
            lane,
            settings={"keep": "responses", "experts": "eager"},
            for_experts=True,
        )
        for lane in ("bf16", "fp32")
    ),
    Contender("vllm-bf16", "vllm", "bf16", peer="vllm", settings={"chunk": 4096}),
    Contender("openvino-bf16", "openvino", "bf16", peer="openvino"),
    Contender("llama.cpp-bf16", "llama_cpp", "bf16", peer="llama_cpp", needs_gguf=True),
)
BY_NAME = {contender.name: contender for contender in CONTENDERS}
TRUTH = BY_NAME["transformers-fp32-kept"]
"""What errors are measured against: fp32 throughout, with the same weights."""


def environment(contender: Contender, peers: Path, work: Path, threads: int) -> dict[str, str]:
    """The worker's environment variables."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
    if contender.peer is not None:
        variables.pop("PYTHONPATH", None)
    if contender.peer == "vllm":
        variables.pop("OMP_WAIT_POLICY")  # vLLM sets what Intel's OpenMP takes
        variables |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in one process, whose clocks and memory are then its own
            "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_CACHE_ROOT": str(work / "vllm-cache"),
            "VLLM_USE_AOT_COMPILE": "0",  # what it saves ahead of time cannot be loaded again; its other cache can
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "LD_PRELOAD": ":".join(map(str, vllm_preloads(peers))),
        }
    return variables


def vllm_preloads(peers: Path) -> list[Path]:
    """Those of tcmalloc and Intel's OpenMP that are there; vLLM is slower without them."""
    places = [
        *Path("/usr/lib").glob("*-linux-gnu/libtcmalloc_minimal.so.4"),
        peers.resolve() / "vllm" / "lib" / "libiomp5.so",
    ]
    return [path for path in places if path.exists()]
