"""``fedlearn audit``: attacks on a job, run in the simulator."""
