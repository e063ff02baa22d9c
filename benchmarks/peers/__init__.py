"""The others, each installed at a pinned version into an environment of its own."""
