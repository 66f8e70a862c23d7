"""The client: what runs inside the TEE, and nothing else."""
