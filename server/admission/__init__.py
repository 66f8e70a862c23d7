"""Admission: challenge, evidence, appraisal, certificate."""
