"""``fedlearn demo``: a federation on this machine, from enrollment to the sealed model."""
