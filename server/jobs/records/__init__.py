"""What is stored of jobs: specifications, policies, bundles and events, and their history."""
