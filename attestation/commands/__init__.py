"""The commands of `attestation`, one module each; `attestation.cli` registers them."""
