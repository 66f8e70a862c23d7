"""The tests of this project, as one package, so that what they share is imported by name."""
