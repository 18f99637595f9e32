"""Whole deployments of processes, as operators run them."""
