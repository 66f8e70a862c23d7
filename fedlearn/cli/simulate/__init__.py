"""``fedlearn simulate``: a job with simulated clients."""
