"""Runs a job with all its clients on one machine, without attestation, TLS and sealing: for research."""
