"""Compression of updates: what a job declares, and the codec of client and aggregator.

:mod:`fedlearn.compression.spec` is the ``[compression]`` table of a job, and imports no numpy.
:mod:`fedlearn.compression.codec` encodes an update and decodes it again.
"""
