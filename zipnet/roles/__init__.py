"""The parts that nodes play. A `*_core` decides and computes; it neither waits nor talks."""
