import numpy as np
import numpy.typing as npt

def first_look(
    buf: npt.NDArray[np.uint8],
    probe: npt.NDArray[np.int32],
    gate: npt.NDArray[np.uint8],
    only: npt.NDArray[np.int32],
    first: npt.NDArray[np.int32],
    next_: npt.NDArray[np.int32],
    magic: npt.NDArray[np.uint8],
    room: npt.NDArray[np.int32],
    hit_sector: npt.NDArray[np.int64],
    hit_magic: npt.NDArray[np.int32],
    resume: npt.NDArray[np.int64],
) -> int: ...
