"""Guest file systems and partition schemes: their self-identifying structures and their consistency."""
