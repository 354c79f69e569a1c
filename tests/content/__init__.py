"""Content pins, each on a guest in which it alone tells where the data lies."""
