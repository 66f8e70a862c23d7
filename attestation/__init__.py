"""Remote attestation: evidence, verifiers, appraisal policies and sealing.

Verification is pure: bytes, a binding, trust anchors and a time go in, values come out.
Only :mod:`attestation.attesters` reads from the machine. Terms are those of RFC 9334.
"""
