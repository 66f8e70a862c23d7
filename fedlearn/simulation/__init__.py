"""Simulation: hundreds of clients of a job in one process, with the code and the bits of the field.

::

    hooks         where research code sees and changes what passes
    setup         simulation.toml
    run           simulate()
    jobs          the job, with other sites and values where asked
    folders       the data of each site
    coordinator   hands the aggregator's questions to the clients
    schedule      in which order answers come, and what the time is
    messages      messages as arrays, for hooks
    clients/      one call of a client, and where calls run
    kept/         what clients keep between calls, and checkpoints
    parties/      the generators, modules and output of parties that share a process
    result        the model and the history

Attestation, TLS, sealing and the sandboxes of apps are left out, and every output states it.

The pages are docs/how-to/simulate.md and docs/adr/0043-simulation.md.
"""

from __future__ import annotations

from fedlearn.simulation.hooks import Call, Hook
from fedlearn.simulation.result import SimulatedRound, SimulatedRun
from fedlearn.simulation.run import simulate
from fedlearn.simulation.setup import SimulationSetup

__all__ = ["Call", "Hook", "SimulatedRound", "SimulatedRun", "SimulationSetup", "simulate"]
