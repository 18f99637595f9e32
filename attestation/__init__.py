"""Attestation of Intel TDX guests: which code runs in a trust domain, and how to tell.

This package knows nothing of zipnet. `attestation.measure` computes, offline and from bytes alone,
the measurements that a quote of a given firmware and unified kernel image will show.
"""
