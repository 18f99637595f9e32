"""Whole deployments in memory: the real cores, a log, and a world that attacks them."""
