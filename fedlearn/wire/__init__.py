"""The wire between sites, clients and the coordinator: generated code and its limits.

The pages are docs/reference/wire.md and docs/contributing/compatibility.md.
"""
