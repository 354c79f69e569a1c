import numpy as np
import numpy.typing as npt

def delta_path(
    expected: npt.NDArray[np.uint8],
    full: npt.NDArray[np.uint8],
    others: npt.NDArray[np.uint8],
    delta: npt.NDArray[np.int64],
    start: int,
    pinned: npt.NDArray[np.int64],
    cost: npt.NDArray[np.float64],
    round_blocks: int,
    action: npt.NDArray[np.uint8],
    jump_from: npt.NDArray[np.int32],
    score: npt.NDArray[np.float64],
    hole: npt.NDArray[np.uint8],
) -> int: ...
