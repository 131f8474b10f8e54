"""Model families as traits, the decoder, and loading of configurations and weights."""
