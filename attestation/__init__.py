"""Remote attestation: evidence, verifiers and appraisal policies.

Verification is pure: bytes, a binding, trust anchors and a time go in, values come out.
Input and output are in three places. :mod:`attestation.attesters` asks the machine for evidence;
:mod:`attestation.endorsements.collateral` and :mod:`attestation.policy.references` read files that
a caller names;
:mod:`fedlearn.sealing` and :mod:`attestation.tpm.seal` keep what was sealed. Nothing opens a
connection to another machine. Terms are those of RFC 9334.

The pages are docs/reference/api/index.md and docs/explanation/attestation.md.
"""
