"""The messages between the processes of a job, and their form."""
