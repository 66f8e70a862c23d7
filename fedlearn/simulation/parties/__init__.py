"""The parties of a simulation in one process: their generators, modules, threads and output."""
