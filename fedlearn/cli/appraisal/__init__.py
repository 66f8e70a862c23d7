"""``fedlearn policy``, ``fedlearn evidence`` and ``fedlearn collateral``."""
