"""A job: its specification, its assignments to sites, its events and its seeds."""
