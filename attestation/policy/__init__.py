"""Appraisal policies: parsed, signed, applied to verified claims, and their results."""
