"""What a node is beside its role: its state on disk, its start and its end."""
