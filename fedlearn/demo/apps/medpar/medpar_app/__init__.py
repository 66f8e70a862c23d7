"""Predict death in hospital without moving a patient's record."""
