"""What pretends to be something else, and speaks its real protocol."""
