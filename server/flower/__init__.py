"""The door to Flower on the coordinator's side: nothing else under ``server`` imports it.

::

    plan        what the coordinator says about a job, and what it answers a job's process
    host        one running job: its link, its process, its outcome
    link        one job's exchange: questions for nodes, and their answers
    nodes       what a node may do with it, as an ASGI application
    run         the job's process: the user's ServerApp, unchanged
    grid        the seam for model bytes, deadlines, quorum and order
    loop        ``Strategy.start`` with checkpoints
    fedavg      the built-in strategy, exact whatever the order
    bundle      an application folder as one deterministic file
    contract    what is known of Flower's ``Strategy.start``, which the loop replaces

Importing this package imports no Flower; it checks its version, and switches its telemetry and
update check off before anybody can import it.
"""

from __future__ import annotations

from fedlearn import flower_pin

flower_pin.prepare()
