"""What files of common kinds begin with."""

import numpy as np

MAGICS = np.array(sorted({int.from_bytes(m[:4], "little") for m in (
    b"\x7fELF", b"PK\x03\x04", b"\x89PNG", b"%PDF", b"SQLi", b"!<ar", b"\xfd7zX", b"\x1f\x8b\x08\x00",
    b"\x1f\x8b\x08\x08", b"GIF8", b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"RIFF", b"OggS", b"#!/b", b"#!/u",
    b"BZh9", b"7z\xbc\xaf", b"\xd0\xcf\x11\xe0")}), np.uint32)
