"""The door to Flower inside a client: nothing else under ``edge`` imports it.

::

    fleet     the client's side of the front: HTTP over mutual TLS
    client    the warm client: loads the app once, and works until the job ends
    state     what an app keeps between rounds, and how it goes back

Importing this package imports no Flower; it checks its version, and switches its telemetry and
update check off before anybody can import it.
"""

from __future__ import annotations

from fedlearn.app import flower_pin

flower_pin.prepare()
