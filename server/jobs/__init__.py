"""Jobs from submission to their outcome, and the sites that run them."""
