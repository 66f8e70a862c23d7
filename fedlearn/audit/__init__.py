"""Attacks on a job as audits: what an attacker learns from it, or does to its model."""
