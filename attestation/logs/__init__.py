"""Event logs of firmware and software, and the registers that protect them."""
