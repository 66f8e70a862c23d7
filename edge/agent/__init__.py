"""The agent of a site: its policy, its budgets, and how it starts clients."""
