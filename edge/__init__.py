"""The edge: the agent of a site, its launchers, and the client inside the TEE."""
