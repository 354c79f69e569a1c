"""Every format, damaged in the same ways: what comes back is right, what does not is said to be lost.

The cases are made by `damage.py`, which also prints them as a table. No format is named here but in COMPLETE, which
says where its own redundancy, or the shape of its tables, must give everything back whose bytes are still there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.formats.damage import come_back, damages, make, samples

ANY_FRONT = ("header sector", "first 4 KiB", "first MiB")
BODY = ("tail sector", "every 10th MiB", "cut at 60%")
COMPLETE: dict[str, tuple[str, ...]] = {
    "qcow2": (*ANY_FRONT[:2], "tail sector", "cut at 60%"),
    "qcow2-4k": (*ANY_FRONT[:2], "tail sector", "cut at 60%"),
    "qcow2-compressed": (*ANY_FRONT[:2], "tail sector", "cut at 60%"),
    "qcow2-extended": (*ANY_FRONT[:2], "tail sector", "cut at 60%"),
    "qcow1": ("tail sector", "cut at 60%"),
    "qed": (*ANY_FRONT[:2], "tail sector", "cut at 60%"),
    "vdi": ("header sector", *BODY),
    "vdi-virtualbox": (*ANY_FRONT, "tail sector", "cut at 60%"),
    "vdi-virtualbox-fixed": (*ANY_FRONT, "tail sector", "cut at 60%"),
    "vdi-differencing": (*ANY_FRONT, "tail sector", "cut at 60%"),
    "parallels": BODY,
    "parallels-old-2048": BODY,
    "vhd": ("header sector", *BODY),
    "vhd-windows": ("header sector", *BODY),
    "vhd-virtualbox": ("header sector", *BODY),
    "vhd-xenserver": ("header sector", *BODY),
    "vhd-windows-differencing": ("header sector", "first 4 KiB", *BODY),
    "vhdx": (*ANY_FRONT, *BODY, "table 0", "table 4", "table 8"),
    "vhdx-windows": (*ANY_FRONT, "tail sector", "cut at 60%"),
    "vhdx-differencing": (*ANY_FRONT, "tail sector", "cut at 60%"),
    "vmdk": (*ANY_FRONT[:2], *BODY, "table 0", "table 4", "table 8"),
    "vmdk-split": ("header sector", *BODY, "table 0"),
    "vmdk-qemu-stream": (*ANY_FRONT, *BODY, "table 0", "table 4", "table 8"),
    "vmdk-stream": (*ANY_FRONT, *BODY, "table 0"),
    "vmdk-front-stream": (*ANY_FRONT, *BODY, "table 0"),
    "cowd": ("tail sector", "cut at 60%"),
    "sesparse": (*ANY_FRONT, *BODY, "table 0", "table 4", "table 8"),
    "xva-xxhash": ("header sector", "tail sector", "cut at 60%"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@pytest.mark.parametrize("name", samples())
def test_damaged_containers(name: str, folder: Path) -> None:
    """Nothing wrong is claimed, and what the format holds twice is used."""
    sample = make(name, folder)
    wanted, met = COMPLETE.get(name, ()), set[str]()
    trouble: list[str] = []
    for damage, mode in damages(sample, quick=True):
        r = come_back(sample, damage, mode, folder)
        said = f"{damage.name} ({mode}), {r.how}: {r.right} of {r.there} right, {r.lost} lost, {r.wrong} wrong"
        if r.wrong and not r.doubted:
            trouble.append(f"wrong and not doubted: {said}")
        if damage.name in wanted:
            met.add(damage.name)
            if r.right < r.there:
                trouble.append(f"should be complete: {said}")
    make.cache_clear()
    assert not trouble, "\n".join(trouble)
    assert met >= set(wanted), f"not tried: {set(wanted) - met}"
