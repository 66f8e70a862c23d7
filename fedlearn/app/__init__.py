"""Flower applications: checked, packed, installed, and the messages that they exchange."""
