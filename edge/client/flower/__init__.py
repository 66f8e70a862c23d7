"""The door to Flower inside a client: nothing else under ``edge`` imports it.

::

    warm_client  works until the job ends; loads the app once, in another process
    fleet        the client's side of the coordinator's fleet server: HTTP over mutual TLS
    app_main     the process of the app
    app_process  the same, as the client sees it
    app_state    what an app keeps between rounds, and how it goes back
    replies      what a client replies

Importing this package imports no Flower; it checks its version, and switches its telemetry and
update check off before anybody can import it.
"""

from __future__ import annotations

from fedlearn.app import flower_pin

flower_pin.prepare()
