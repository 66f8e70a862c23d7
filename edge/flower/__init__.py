"""The door to Flower inside a client: nothing else under ``edge`` imports it.

::

    fleet     the client's side of the front: HTTP over mutual TLS
    client    the warm client: loads the app once, and works until the job ends
    state     what an app keeps between rounds, and how it goes back

Importing this package imports no Flower. Its telemetry and its update check are switched off
here, before anybody can.
"""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
