"""A stand-in for a post-trained model: the weights of another with seeded noise.

    python bench/noisy_model.py smollm2-135m-instruct --noise 0.1 -o build/noise-0.1

Every matrix gets Gaussian noise of so many of its own standard deviations. Beside the folder lies the one without noise
(weights rounded to bf16, where they are stored in another way), which is the model to compare it with.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from end_to_end.models import bf16_folder
from safetensors.torch import load_file, save_file


def main() -> None:
    args = parse()
    if args.out.exists():
        raise SystemExit(f"{args.out}: is there already; give -o a folder that does not exist yet")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    source = bf16_folder(args.model, args.out.parent)
    shutil.copytree(source, args.out)
    for path in sorted(args.out.glob("*.safetensors")):
        add_noise(path, args.noise, args.seed)
    print(f"{source}\n{args.out}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an alias, a Hugging Face folder or a .gguf file")
    parser.add_argument("--noise", type=float, required=True, help="in standard deviations of a matrix")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True)
    return parser.parse_args()


def add_noise(path: Path, strength: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(path)
    for name in sorted(tensors):
        values = tensors[name]
        if values.ndim == 2:
            noise = torch.randn(values.shape, generator=generator)
            tensors[name] = (values + strength * values.float().std() * noise).to(values.dtype)
    save_file(tensors, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
