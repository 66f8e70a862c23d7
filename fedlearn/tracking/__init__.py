"""Records a run with an experiment tracker, from its events, on the operator's side.

Nothing of it runs at the coordinator, at a site or in a TEE. Each tracker has a module of its own,
which is imported when it is used, and an extra of its own.

The page is docs/how-to/track-a-job.md.
"""
