"""What a job must fulfil beyond the types of its keys."""
