"""``fedlearn data``: data for research, divided among simulated sites."""
