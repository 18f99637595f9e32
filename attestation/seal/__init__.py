"""Data that survives a boot only for the state of the machine that it was sealed for.

`memory` keeps nothing beyond the process; `tpm2` keeps files that one TPM opens; `committee` a blob
that opens with a contribution of every member of a committee.
"""
