import numpy as np
import numpy.typing as npt

def call_votes(
    cut: npt.NDArray[np.int64],
    target: npt.NDArray[np.int64],
    head: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64],
    page: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    votes: npt.NDArray[np.uint64],
    best: npt.NDArray[np.int64],
    most: npt.NDArray[np.int64],
    next: npt.NDArray[np.int64],
) -> int: ...
