"""Measurements of a TDX appliance, computed offline: pure functions over bytes.

`tdvf` gives MR_TD, `rtmr` RTMR1 and RTMR2, `authenticode` the hash that Secure Boot compares,
`firmware` binds that hash into a firmware and audits what a firmware is, `record` holds results.
"""
