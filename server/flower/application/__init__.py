"""The application's process: the user's ServerApp in a sandbox."""
