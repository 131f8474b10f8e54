"""What bench_end_to_end.py is made of: models and cases, contenders and their workers, rounds, errors and tables."""
