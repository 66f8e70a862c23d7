"""Parts that areas of the tests share: real ones, and stand-ins that speak real protocols."""
