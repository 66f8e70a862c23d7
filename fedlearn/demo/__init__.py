"""The demonstration: real data that needs no download, two ordinary Flower apps, a report.

The demonstration has no special interfaces. The apps are plain Flower apps, the data of a site is
files in a folder of its own, and the model is evaluated with the code that trained it.
"""

from __future__ import annotations
