"""What agent, client and coordinator exchange."""
