"""Statistics over the tables of a run; never imports torch."""
