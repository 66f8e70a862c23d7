"""Secure aggregation in the aggregator: it adds masked updates and unmasks their sum.

::

    strategy  a strategy of the mean family over masked updates
    stages    the messages of the protocol beside those to train
    answers   what an answer to one of them must be

The page is docs/adr/0049-secure-aggregation.md.
"""
