"""The attacks themselves: arrays in, arrays out. They read no file and start no process."""
