"""Requests of commands on the coordinator's machine to the coordinator that runs there."""
