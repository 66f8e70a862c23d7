"""The stored parts of jobs: specifications, policies, bundles, events, and their history."""
