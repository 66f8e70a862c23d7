"""TPM 2.0: endorsement keys, credential activation, and sealing to a TPM.

The page is docs/explanation/tpm.md.
"""
