"""A shared body and a head for each site."""
