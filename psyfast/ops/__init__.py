"""The five operators, their records, and the registry of backends."""
