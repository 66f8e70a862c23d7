"""Identities: SPIFFE ids, keys, join tokens, vouchers, logins, TLS, the software digest."""
