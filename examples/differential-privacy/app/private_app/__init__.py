"""A logistic regression with differential privacy."""
