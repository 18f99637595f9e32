"""The committee as a deterministic state machine: commands in, state and events out."""
