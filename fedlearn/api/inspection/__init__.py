"""The checks of an app that read its sources, and run none of them."""
