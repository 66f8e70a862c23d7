"""The binary formats of evidence, parsed strictly and without judgement."""
