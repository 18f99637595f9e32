"""The round protocol, wire version 2: pure functions over bytes.

Nothing here does I/O, reads a clock or draws randomness; all are arguments.
"""
