"""Certificates of the coordinator's CA, operators, and enrolled sites."""
