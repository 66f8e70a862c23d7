"""A logistic regression with an own aggregation rule."""
