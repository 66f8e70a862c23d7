"""A logistic regression over two sites."""
