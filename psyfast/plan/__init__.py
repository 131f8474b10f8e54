"""From token sequences to what the engine runs: forest, pages, windows."""
