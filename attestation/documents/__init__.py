"""Evidence in files, in the formats of other tools."""
