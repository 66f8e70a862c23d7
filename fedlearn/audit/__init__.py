"""Attacks on a job as audits: what an attacker learns from it, or does to its model.

::

    attacks      the attacks, pure: arrays in, arrays out
    target       the job, its data, and audit.toml
    site_data    the records of a site's folder
    torch_model  the app's torch model with the arrays of a job
    canaries     sites whose update moves one number of the model
    runs         runs of variants of a job in the simulator
    statistics   curves and intervals
    figures      one figure for each audit

and one module for each audit: ``inversion``, ``membership``, ``epsilon``, ``poisoning``,
``backdoor``.

The page is docs/adr/0050-audits.md.
"""
