"""Loading models: configuration, weight sources, tokenizers."""
