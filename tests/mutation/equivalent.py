"""Mutants that change nothing, by name, each with the reason."""

EQUIVALENT: dict[str, str] = {}
