"""What vendors publish about their hardware: certificates, revocation, TCB, reference values."""
