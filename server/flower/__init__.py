"""All use of Flower on the coordinator's side: nothing else under ``server`` imports it.

::

    job_plan     the plan of a job, and the channel between the coordinator and its aggregator
    job_runner   one running job: its exchange, its processes, its outcome

    exchange     in the coordinator: questions for nodes, and their answers
      link         one job's exchange
      nodes        what a node may do with it, as an ASGI application
      calls        what the aggregator asks of the coordinator, both ends
      receipts     what the coordinator handed to the aggregator, for the facts in the ledger

    aggregation  the process that aggregates: every update in the clear, no user code
      aggregator   the process
      rounds       its rounds: sum, noise, charge, seal, release
      grid         the seam for model bytes, deadlines, quorum and order
      replies      what a reply must be before a strategy sees it
      mean         the exact weighted mean
      builtin      the built-in strategies
      remote       the application's own functions, called in its process

    application  the process of the application: the user's ServerApp, unchanged
      app_main     the process
      app_grid     what the application has of Flower's grid and of ``Strategy.start``
      app_process  how the process is started, in its sandbox
      app_host     applications in another container: what runs there
      hosted       the same, as the job's runner sees it
      app_files    the files that an application leaves
      bundle       an application folder as one deterministic file
      contract     what is known of Flower's ``Strategy.start``

    ipc          between these processes
      peer              calls in both directions
      records           Flower's records
      failures          errors
      strategy_state    the state of a strategy, written down
      task              the run that a process works for, in Flower's form
      process_lifetime  what both processes do first: they end with the coordinator

Importing this package imports no Flower; it checks its version, and switches its telemetry and
update check off before it is imported.
"""

from __future__ import annotations

from fedlearn.app import flower_pin

flower_pin.prepare()
