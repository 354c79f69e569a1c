"""What was assembled is tested: the format's invariants, the streams that must decode, the guest's own structures."""

from .disk import Verified, guest_disk, verify

__all__ = ["Verified", "guest_disk", "verify"]
