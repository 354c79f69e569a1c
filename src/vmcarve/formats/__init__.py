"""Container formats: one file per format, found by import (see registry.py)."""
