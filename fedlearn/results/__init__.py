"""The results of a job, from its events: rounds, sites, refusals, privacy, times."""
