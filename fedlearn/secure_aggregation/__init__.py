"""Secure aggregation: the coordinator learns the sum of the updates, and no single one.

SecAgg+ (Bell et al. 2020, https://eprint.iacr.org/2020/704), which with every other client as a
neighbour is the protocol of Bonawitz et al. 2017 (https://eprint.iacr.org/2017/281). This package
is the protocol alone: bytes and integers in, bytes and integers out, without Flower and without I/O
but the system's random generator.

::

    spec         the parameters in a job
    fixed_point  updates as integers modulo a power of two, and back
    shamir       shares of secrets
    keys         key agreement, masks, sealed shares
    graph        who is whose neighbour, and how many shares recover a secret
    roster       the keys of a round, signed, and their digest
    messages     what travels between both sides
    client       a client's side of one round
    server       the coordinator's side of one round

The page is docs/how-to/secure-aggregation.md.
"""
