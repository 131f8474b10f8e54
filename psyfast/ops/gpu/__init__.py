"""The operators on a GPU: torch's matrix products, and around them kernels of our own in Triton or in CUDA C++."""
