"""Host file systems: what is free, what is live, and what deletion left behind."""
