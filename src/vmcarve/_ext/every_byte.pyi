import numpy as np
import numpy.typing as npt

class BytesTable:
    magics: int
    def __init__(
        self,
        low: npt.NDArray[np.uint8],
        high: npt.NDArray[np.uint8],
        six: npt.NDArray[np.uint8],
        begins: npt.NDArray[np.uint8],
        magic: npt.NDArray[np.uint8],
        room: npt.NDArray[np.int32],
        at: npt.NDArray[np.int64],
        also_at: npt.NDArray[np.int64],
        also_room: npt.NDArray[np.int32],
        also_mask: npt.NDArray[np.uint8],
        also_value: npt.NDArray[np.uint8],
        path: int,
    ) -> None: ...

def every_byte(
    table: BytesTable,
    buf: npt.NDArray[np.uint8],
    image_at: int,
    end: int,
    hit_at: npt.NDArray[np.int64],
    hit_magic: npt.NDArray[np.int32],
    resume: npt.NDArray[np.int64],
) -> int: ...
