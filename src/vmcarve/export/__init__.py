"""What was recovered is written: containers byte for byte, guest disks as sparse raw files."""

from .write import Output, Stopped, needed, write_container, write_raw

__all__ = ["Output", "Stopped", "needed", "write_container", "write_raw"]
