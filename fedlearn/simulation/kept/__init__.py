"""What a simulation keeps on disk: the memories of its clients, and its last checkpoint."""
