"""The agent of a site: its policy, its budgets, and how it starts clients.

The page is docs/how-to/run-a-site.md.
"""
