"""OpenVINO, a transcript at a time: optimum-intel's conversion, its logits cut down to the rows that are scored.

The conversion is done once, in a process of its own; loading is compiling what it wrote.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from serving import Case, Job, Scorer, Stopwatch, scored_positions, serve

PRECISIONS = {"bf16": "bf16", "fp32": "f32"}


def load(job: Job) -> Scorer:
    """The compiled model; its weights are those of the folder, in the lane's type."""
    import openvino

    core = openvino.Core()
    model = core.read_model(_converted(Path(job["model"]), Path(job["work"])))
    _keep_rows(model)
    precision = PRECISIONS[job["lane"]]
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": precision,  # not its default of 8 bits: nobody else rounds keys and values so
        "INFERENCE_NUM_THREADS": job["threads"],
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def nll(sequence: dict) -> np.ndarray:
        ids_T = np.array(sequence["ids"], dtype=np.int64)
        scored_N = scored_positions(sequence)
        request.reset_state()
        request.infer(
            {
                "input_ids": ids_T[None],
                "attention_mask": np.ones((1, len(ids_T)), np.int64),
                "position_ids": np.arange(len(ids_T))[None],
                "beam_idx": np.zeros(1, np.int32),
                "kept_rows": scored_N - 1,
            },
            share_inputs=True,
        )
        logits_NV = request.get_tensor("logits").data[0]
        largest_N = logits_NV.max(1)
        lse_N = largest_N + np.log(np.exp(logits_NV - largest_N[:, None]).sum(1, dtype=np.float64))
        return lse_N - logits_NV[np.arange(len(scored_N)), ids_T[scored_N]]

    def score(case: Case, watch: Stopwatch) -> list[np.ndarray]:
        return [nll(sequence) for sequence in case["sequences"]]

    return score


def _converted(folder: Path, work: Path) -> Path:
    """The folder in OpenVINO's format, with the same weights in fp32 (bf16 values are exact in it)."""
    target = work / f"openvino-{folder.name}"
    if not (target / "whole").is_file():
        command = [str(Path(sys.executable).parent / "optimum-cli"), "export", "openvino", "-m", str(folder)]
        command += ["--task", "text-generation-with-past", "--weight-format", "fp32", str(target)]
        subprocess.run(command, check=True)
        (target / "whole").touch()
    return target / "openvino_model.xml"


def _keep_rows(model) -> None:
    """Give the LM head only the rows that a new input, `kept_rows`, names."""
    import openvino
    from openvino import opset13 as ops

    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":  # a conversion of the logits' type
        head = head.input_value(0).get_node()
    kept = ops.parameter([-1], np.int64, name="kept_rows")
    kept.output(0).get_tensor().set_names({"kept_rows"})
    rows = ops.gather(head.input_value(0), kept, ops.constant(np.int64(1)))
    head.input(0).replace_source_output(rows.output(0))
    model.add_parameters([kept])
    model.validate_nodes_and_infer_types()
    assert isinstance(model, openvino.Model)


if __name__ == "__main__":
    serve(load, ["openvino", "optimum-intel"])
