"""Benchmarks. A package, so that nobody else's `bench` is found before this one (`python3 -m bench.gpu_check`)."""
