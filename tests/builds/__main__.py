"""`python -m tests.builds`: compiles every kernel for every generation and rewrites the table and the page about it."""

from __future__ import annotations

from tests.builds import cuda_builds, triton_builds
from tests.builds.compile_all import compile_all
from tests.builds.page import PAGE, rewritten
from tests.builds.table import TABLE, faults, from_csv, to_csv


def main() -> None:
    """Without nvcc, the table keeps what it says of CUDA."""
    timed = compile_all(triton_builds.compiled, triton_builds.jobs())
    if cuda_builds.nvcc():
        for found, seconds in compile_all(cuda_builds.compiled, cuda_builds.jobs()):
            timed += [(binary, seconds) for binary in found]
    binaries = [binary for binary, _ in timed]
    if not cuda_builds.nvcc():
        binaries += [binary for binary in from_csv(TABLE.read_text(encoding="utf-8")) if binary.backend == "cuda"]
    TABLE.write_text(to_csv(binaries), encoding="utf-8")
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), binaries), encoding="utf-8")
    print(f"{TABLE}: {len(binaries)} builds; the slowest:")
    for binary, seconds in sorted(timed, key=lambda pair: -pair[1])[:10]:
        print(f"  {seconds:5.1f} s  {binary}")
    for binary in binaries:
        for fault in faults(binary):
            print(f"FAULT {fault}")


if __name__ == "__main__":
    main()
