"""Flower inside a client: no other package under ``edge`` imports it.

::

    warm_client    works until the job ends; loads the app once, in another process
    fleet          the client's side of the coordinator's fleet server: its actions
    fleet_session  HTTP over mutual TLS, for them
    app_main       the process of the app
    loaded_app     the app in a process that has loaded it, and the calls of it
    app_process    the client's end of that process
    app_state      the state of an app between rounds, and its restoration
    replies        the replies of a client

Importing this package does not import Flower: it checks Flower's version, and switches its
telemetry and update check off before another module can import it.
"""

from __future__ import annotations

from fedlearn.app import flower_pin

flower_pin.prepare()
