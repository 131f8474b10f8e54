"""Stand-ins for other models: a model's weights with seeded noise of several strengths.

    python bench/noisy_models.py build/noisy                       # SmolLM2-135M-Instruct, noise of 0.05 and 0.15
    psyfast score DATA --model build/noisy/noise-0,build/noisy/noise-0.05,build/noisy/noise-0.15 -o RUN
    psyfast report RUN --pairs build/noisy/pairs.toml -o report.html

A strength is the noise's standard deviation in units of each matrix's own; norms stay. The folder also gets a pairs.toml, in
which every noisy model is a post-trained one of the model without noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from end_to_end.models import bf16_folder
from safetensors.torch import load_file, save_file

STRENGTHS = (0.05, 0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--strengths", type=float, nargs="+", default=list(STRENGTHS))
    args = parser.parse_args()
    source = bf16_folder(args.model, args.out / "work")
    names = [make_noisy(source, args.out, strength) for strength in (0.0, *args.strengths)]
    write_pairs(args.out / "pairs.toml", names)
    print("\n".join(str(args.out / name) for name in names))


def make_noisy(source: Path, out: Path, strength: float) -> str:
    """Write the model's copy with noise and return its name."""
    name = f"noise-{strength:g}"
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder / path.name)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        for key, weight in sorted(load_file(path).items()):
            if weight.dim() == 2 and strength:
                noise = torch.randn(weight.shape, generator=generator)
                tensors[key] = (weight.float() + strength * weight.float().std() * noise).to(weight.dtype)
            else:
                tensors[key] = weight
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return name


def write_pairs(path: Path, names: list[str]) -> None:
    """A table of pairs for `psyfast metrics` and `psyfast report`."""
    size = 0.135
    models = "\n".join(f"{json.dumps(name)} = {size}" for name in names)
    pairs = "\n".join(f"{json.dumps(name)} = {json.dumps(names[0])}" for name in names[1:])
    trend = '[trend]\nNoise = "noise"\n'
    path.write_text(f"[models.Noise]\n{models}\n\n[pairs.noise]\n{pairs}\n\n{trend}", encoding="utf-8")


if __name__ == "__main__":
    main()
