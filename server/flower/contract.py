"""What we use of Flower beyond its public interface, in one place.

:func:`check` runs when a process of ours starts. It names the version of Flower that is
installed and the first thing that is not as we know it, so that an upgrade fails with one
sentence instead of in the middle of a round. tests/server/test_flower_contract.py calls every
one of these for real.
"""

from __future__ import annotations

from typing import Final

from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NodeStatus
from flwr.superlink.config_loader import get_objectstore_linkstate_factories
from flwr.superlink.federation import NoOpFederationManager

from fedlearn.flower import FlowerMismatch, has

__all__ = [
    "FlowerMismatch",
    "check",
    "in_memory_linkstate",
    "place_node",
    "primary_task",
    "remove_node",
]

_LINKSTATE: Final = (
    "acknowledge_node_heartbeat",
    "acknowledge_task_heartbeat",
    "activate_node",
    "activate_task",
    "claim_task",
    "cleanup_run",
    "create_node",
    "create_run",
    "deactivate_node",
    "delete_messages",
    "delete_node",
    "finish_task",
    "get_message_ids_from_run_id",
    "get_message_ins",
    "get_message_res",
    "get_nodes",
    "get_run_info",
    "start_session",
    "store_fab",
    "store_message_and_object_tree",
    "store_object",
)
_STORE: Final = ("delete", "get", "get_object_tree")


def check() -> None:
    """Look at everything that we rely on.

    :raises FlowerMismatch: naming the first thing that is missing or different.
    """
    for name in _LINKSTATE:
        has(InMemoryLinkState, name)
    state = in_memory_linkstate()
    for name in ("nodes", "node_public_key_to_node_id", "owner_to_node_ids", "lock"):
        has(state, name)
    for name in _STORE:
        has(state.object_store, name)


def in_memory_linkstate() -> LinkState:
    """Return a new LinkState that keeps everything in memory and knows no other run."""
    _, factory = get_objectstore_linkstate_factories(
        FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager()
    )
    return factory.state()


def primary_task(state: LinkState, run_id: int) -> int:
    """Return the number of the task that is the run's ServerApp."""
    return int(state.run_ids[run_id].run.primary_task_id)


def place_node(state: LinkState, number: int, public_key: bytes) -> None:
    """Make a node with a number of our choice, or give the one that has it another key.

    Flower draws numbers at random; ours are the same in every run of a job.
    """
    with state.lock:
        node = state.nodes.get(number)
        if node is not None and node.status != NodeStatus.UNREGISTERED:
            if node.public_key != public_key:
                state.node_public_key_to_node_id.pop(node.public_key, None)
                node.public_key = public_key
                state.node_public_key_to_node_id[public_key] = number
            return
        if node is not None:
            state.node_public_key_to_node_id.pop(node.public_key, None)
        drawn = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public_key, 0)
        fresh = state.nodes.pop(drawn)
        fresh.node_id = number
        state.nodes[number] = fresh
        state.node_public_key_to_node_id[public_key] = number
        owned = state.owner_to_node_ids[NOOP_FLWR_AID]
        owned.discard(drawn)
        owned.add(number)


def remove_node(state: LinkState, number: int) -> None:
    """Unregister a node that :func:`place_node` made."""
    with state.lock:
        node = state.nodes.get(number)
        if node is None or node.status == NodeStatus.UNREGISTERED:
            return
        state.node_public_key_to_node_id.pop(node.public_key, None)
        state.delete_node(NOOP_FLWR_AID, number)
