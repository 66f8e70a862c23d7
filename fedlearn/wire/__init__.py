"""The wire between sites, clients and the coordinator: generated code and its limits."""
