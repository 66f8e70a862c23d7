"""Tell ten kinds of small grey images apart without moving an image."""
