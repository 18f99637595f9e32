"""How nodes reach each other. `base` is the port; each other public module is an engine for it."""
