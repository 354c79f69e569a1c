"""What was recovered is written: containers byte for byte, guest disks as sparse raw files."""

from .write import Output, needed, write_container, write_raw

__all__ = ["Output", "needed", "write_container", "write_raw"]
