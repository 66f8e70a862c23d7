"""Gradient-boosted trees over three sites."""
