"""Runs a job with all its clients on one machine, for research: no attestation, TLS or sealing."""
