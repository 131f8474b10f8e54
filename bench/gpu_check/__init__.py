"""`make gpu-check`: the proof that only a machine with a GPU can give, in one command and under eight minutes.

Ceilings, numerics, determinism, compute-sanitizer, throughput, whole engine; each part in processes of its own, so that one
that dies takes nothing with it. Needs torch, numpy and, for what there is to check, Triton or nvcc; installs nothing.
"""
