"""``site.toml``: the configuration of a site."""
