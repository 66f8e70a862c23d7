"""Endorsements by hardware vendors: certificates, revocation, TCB levels, reference values."""
