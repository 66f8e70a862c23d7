"""Classify small grey images of ten kinds, which stay at their sites."""
