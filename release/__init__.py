"""Builds, and later publishes and verifies, releases of the zipnet appliances."""
