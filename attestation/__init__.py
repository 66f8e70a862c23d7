"""Remote attestation: evidence, verifiers, appraisal policies and sealing.

Verification is pure: bytes, a binding, trust anchors and a time go in, values come out.
Input and output are in three places. :mod:`attestation.attesters` asks the machine for evidence;
:mod:`attestation.collateral` and :mod:`attestation.references` read files that a caller names;
:mod:`attestation.sealing` and :mod:`attestation.tpm_seal` keep what was sealed. Nothing opens a
connection to another machine. Terms are those of RFC 9334.
"""
