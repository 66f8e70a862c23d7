"""The exchange of messages between a job and its nodes, in the coordinator."""
