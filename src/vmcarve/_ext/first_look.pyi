import numpy as np
import numpy.typing as npt

class LookTable:
    magics: int
    def __init__(
        self,
        gates: int,
        line: npt.NDArray[np.int32],
        pattern: npt.NDArray[np.uint16],
        mask: npt.NDArray[np.uint16],
        idle: npt.NDArray[np.uint16],
        probe: npt.NDArray[np.int32],
        probe_bits: npt.NDArray[np.uint8],
        heads: npt.NDArray[np.int32],
        head: npt.NDArray[np.uint16],
        first: npt.NDArray[np.int32],
        next_: npt.NDArray[np.int32],
        magic: npt.NDArray[np.uint8],
        room: npt.NDArray[np.int32],
        also_at: npt.NDArray[np.int64],
        also_room: npt.NDArray[np.int32],
        also_mask: npt.NDArray[np.uint8],
        also_value: npt.NDArray[np.uint8],
        path: int,
    ) -> None: ...

def first_look(
    table: LookTable,
    buf: npt.NDArray[np.uint8],
    hit_sector: npt.NDArray[np.int64],
    hit_magic: npt.NDArray[np.int32],
    resume: npt.NDArray[np.int64],
) -> int: ...
def read_and_look(
    table: LookTable,
    fd: int,
    state: npt.NDArray[np.int64],
    buf: npt.NDArray[np.uint8],
    piece: int,
    hit_sector: npt.NDArray[np.int64],
    hit_magic: npt.NDArray[np.int32],
) -> int: ...
