"""The door to Flower on the coordinator's side: nothing else under ``server`` imports it.

::

    plan        what the coordinator says about a job, and what it answers a job's processes
    host        one running job: its link, its processes, its outcome
    application how the application's process is started, in its sandbox
    apphost     applications in another container: what runs there
    hosted      the same, as the job's host sees it
    link        one job's exchange: questions for nodes, and their answers
    nodes       what a node may do with it, as an ASGI application
    calls       what the aggregator asks of the coordinator
    aggregator  the process that aggregates: every update in the clear, no user code
    loop        its rounds: sum, noise, charge, seal, release
    grid        the seam for model bytes, deadlines, quorum and order
    replies     what a reply must be before a strategy sees it
    builtin     the built-in strategies
    capture     the state of a strategy, written down
    remote      the application's own functions, called in its process
    apprun      the application's process: the user's ServerApp, unchanged
    appgrid     what the application has of Flower's grid and of ``Strategy.start``
    peer        calls in both directions between these two processes
    records     Flower's records between them
    failures    errors between the processes of a job
    processes   what both processes do first: they end with the coordinator
    task        which run a process works for, as Flower wants to know it
    bundle      an application folder as one deterministic file
    contract    what is known of Flower's ``Strategy.start``

Importing this package imports no Flower; it checks its version, and switches its telemetry and
update check off before anybody can import it.
"""

from __future__ import annotations

from fedlearn.app import flower_pin

flower_pin.prepare()
