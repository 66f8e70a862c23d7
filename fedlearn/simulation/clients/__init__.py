"""The clients of a simulation: one call, and where calls run."""
