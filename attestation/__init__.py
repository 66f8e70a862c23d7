"""Remote attestation: evidence, verifiers and appraisal policies.

Verification is pure: bytes, a binding, trust anchors and a time go in, values come out.
Only these modules do input and output: :mod:`attestation.attesters` collects evidence from the
machine; :mod:`attestation.endorsements.collateral` and :mod:`attestation.policy.references` read
files that a caller names; :mod:`attestation.durable` writes files, and :mod:`attestation.tpm.seal`
uses the TPM. Nothing opens a connection to another machine. Terms are those of RFC 9334.

The pages are docs/reference/api/index.md and docs/explanation/attestation.md.
"""
