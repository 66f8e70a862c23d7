"""``fedlearn ledger`` and ``fedlearn model``: a coordinator's state directory, opened offline."""
