"""The door to Flower on the coordinator's side: nothing else under ``server`` imports it.

::

    plan        what the coordinator says about a job, and what it answers a job's process
    host        one running job: its link, its process, its outcome
    link        one job's Flower state in memory; what the job's process may do with it
    nodes       what a node may do with it, as an ASGI application
    messages    Flower's protobuf messages, read with bounds
    run         the job's process: the user's ServerApp, unchanged
    grid        the seam for model bytes, deadlines, quorum and order
    loop        ``Strategy.start`` with checkpoints
    fedavg      the built-in strategy, exact whatever the order
    bundle      an application folder as one deterministic file
    contract    the private names of Flower that we use, checked when a process starts

Importing this package imports no Flower; it checks its version, and switches its telemetry and
update check off before anybody can import it.
"""

from __future__ import annotations

from fedlearn import flower_pin

flower_pin.prepare()
