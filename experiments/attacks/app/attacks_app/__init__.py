"""A small network on Fashion-MNIST, to be attacked."""
