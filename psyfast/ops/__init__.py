"""The seven operators, their records, and the registry of backends."""
