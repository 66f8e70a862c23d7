"""Small jobs for tests of the simulator."""

from __future__ import annotations

from pathlib import Path

from tests.harness.flower_federation import CLIENT_APP, SERVER_APP, write_app

CLIENT = CLIENT_APP.replace('node_config["index"]', 'node_config["partition-id"]')
"""Its state counts the calls, and its updates are drawn from the generator of each call."""

JOB = """
name = "tiny"
app = "app"
rounds = 3
sites = ["north", "south", "west"]
seed = 7
policy = "there-is-none.toml"
"""


def write_job(
    folder: Path, *, client: str = CLIENT, server: str = SERVER_APP, more: str = "", job: str = JOB
) -> Path:
    """Write a job with its app; return the job's file."""
    write_app(folder / "app", client=client, server=server)
    file = folder / "job.toml"
    file.write_text(job + more)
    return file
