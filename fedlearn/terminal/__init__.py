"""Output of the commands on a terminal, in a log and as JSON."""
