"""Handwritten digits: an app to audit."""
