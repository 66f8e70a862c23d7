"""The key service: the root key, its protectors, and the release of content keys."""
