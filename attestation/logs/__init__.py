"""Event logs of firmware and of software, and the registers that protect them."""
