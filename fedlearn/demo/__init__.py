"""The demonstration: real data that needs no download, two ordinary Flower apps, a report.

Nothing here is privileged. The apps are plain Flower apps, the data reaches a site as files
in a folder of its own, and the model is judged with the same code that trained it.
"""

from __future__ import annotations
