"""The commands of `zipnet`, one module each; `zipnet.cli` registers them."""
