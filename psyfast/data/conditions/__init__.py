"""Conditions: renderings of the same transcripts, each a small named function."""
