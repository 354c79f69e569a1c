"""Words in, words out: the command line. No logic lives here."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import Case

EXAMPLES = """\
examples:
  vmcarve recover disk.raw --out case          sweep a raw disk, recover what was deleted, write it to case/disks
  vmcarve recover /dev/sdb --out case --no-write    tables and maps only: nothing is copied
  vmcarve recover dump.mem --out case --align 1    disks that lie at any byte: in an archive, in a memory dump
  vmcarve recover a.raw b.raw --out case       two disks of one host: snapshot chains may span them
  vmcarve list case                            what was found, one line a disk
  vmcarve show case vdi-1f400000               one disk: its map, its grades, what is missing and why
  vmcarve export case vdi-1f400000 --to raw --output guest.raw
  vmcarve bench /dev/sdb                       how fast this source can be swept, and what to set

exit status: 0 done (also when nothing was found), 1 a stated failure, 2 wrong use, 3 done, but part of the image
could not be read. The evidence is opened read-only, always."""


def main(argv: list[str] | None = None) -> int:
    """Entry point. Every failure is one line on stderr."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    from .errors import UsageError, VmcarveError

    try:
        return args.run(args)
    except UsageError as e:
        print(f"vmcarve: {e}", file=sys.stderr)
        return 2
    except VmcarveError as e:
        print(f"vmcarve: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # who presses the keys twice gets one line, too
        print("vmcarve: interrupted; the case is not complete (--resume goes on from a finished sweep)",
              file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return 1
    except MemoryError:
        print("vmcarve: out of memory", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"vmcarve: {e.filename + ': ' if isinstance(e.filename, str) else ''}{e.strerror or e}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vmcarve", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EXAMPLES,
        description="Recovers deleted and damaged virtual machine disks from raw disks, and says for every byte how\n"
                    "it knows: VMDK, VHD, VHDX, VDI, QCOW, QCOW2, QED, Parallels, XVA, VMA, OVA and raw guests.")
    parser.add_argument("--version", action="version", version=_Version())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".",
                                formatter_class=argparse.RawDescriptionHelpFormatter)
        p.set_defaults(run=run)
        return p

    recover = command("recover", "the main job: sweep, assemble, verify and write", _recover)
    sweep = command("sweep", "evidence only: every structure that the sweep can prove", _sweep)
    for p in (recover, sweep):
        p.add_argument("image", nargs="+", metavar="IMAGE", help="raw image or block device")
        p.add_argument("--out", required=True, metavar="CASE", help="folder for the results, new or empty")
        p.add_argument("--unallocated", action="store_true",
                       help="only what the host file systems of the image do not hold: deleted disks, no live ones")
        p.add_argument("--resume", action="store_true", help="go on in a case whose sweep was finished")
        p.add_argument("--align", type=int, choices=(512, 1), default=512, metavar="N",
                       help="where containers may begin: 512, on sectors (default), or 1, at any byte too: inside "
                            "archives and memory dumps; takes two to three times as long where reading is fast")
        p.add_argument("--hash-image", action="append", choices=("sha256", "blake2b", "blake3"), default=[],
                       metavar="NAME", help="hash each image while it is swept, into case.json: sha256, blake2b, or "
                                            "blake3 (where its package is installed); may be given more than once")
        p.add_argument("--threads", type=_threads, metavar="N", help="worker threads of the sweep (default: cores)")
    recover.add_argument("--live", action="store_true", help="also write disks that are not deleted on the host")
    recover.add_argument("--no-write", action="store_true", help="tables and maps only, no recovered files")
    recover.add_argument("--no-hash", action="store_true", help="do not compute SHA-256 of the recovered files")
    listing = command("list", "disks found, one line each", _list)
    listing.add_argument("case", metavar="CASE")
    listing.add_argument("--json", action="store_true", help="the rows of disks.arrow as JSON")
    listing.add_argument("--arrow", action="store_true", help="the same rows as an Arrow IPC stream")
    show = command("show", "one disk: its map, grades, checks, and what is missing and why", _show)
    show.add_argument("case", metavar="CASE")
    show.add_argument("disk", metavar="DISK", help="disk_id, or the beginning of one")
    show.add_argument("--json", action="store_true", help="the same as JSON")
    export = command("export", "write one guest disk in another shape", _export)
    export.add_argument("case", metavar="CASE")
    export.add_argument("disk", metavar="DISK")
    export.add_argument("--to", required=True, choices=["raw"], metavar="FORMAT", help="raw: the guest disk, sparse")
    export.add_argument("--output", metavar="FILE", help="default: CASE/disks/DISK.export.raw")
    bench = command("bench", "how fast this source can be swept, what holds it up, and what to set", _bench)
    bench.add_argument("image", metavar="IMAGE", help="raw image or block device; it is only read")
    bench.add_argument("--json", action="store_true", help="the same as JSON, speeds in bytes a second")
    bench.add_argument("--seconds", type=_seconds, default=10.0, metavar="S",
                       help="how long to measure (default: %(default)g)")
    demo = command("demo", "make a small host image with deleted disks and recover them", _demo)
    demo.add_argument("--out", default="demo-case", metavar="DIR", help="folder, new or empty (default: %(default)s)")
    return parser


class _Version(str):
    """Reads the version only when it is asked for: the look-up is slower than the rest of --help."""

    def __new__(cls) -> _Version:
        return super().__new__(cls, "%(prog)s")

    def __mod__(self, values: Any) -> str:
        from .version import program_version

        return f"vmcarve {program_version()}"


def _threads(text: str) -> int:
    n = int(text)
    if not 1 <= n <= 256:
        raise argparse.ArgumentTypeError("1 to 256")
    return n


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("0.1 to 3600")
    return seconds


# --- commands ------------------------------------------------------------------------------------------------------
def _options(args: argparse.Namespace) -> Any:
    from .pipeline import Options

    options = Options(resume=args.resume, unallocated=args.unallocated, align=args.align,
                      hash_image=tuple(dict.fromkeys(args.hash_image)))
    if args.threads:
        options.threads = args.threads
    if hasattr(args, "live"):
        options.live, options.write, options.digest = args.live, not args.no_write, not args.no_hash
    return options


def _recover(args: argparse.Namespace) -> int:
    from .pipeline import recover
    from .terminal import Progress, print_disks, print_next_step

    with Progress() as progress:
        case = recover(args.image, args.out, options=_options(args), report=progress)
    print_disks(case)
    print_next_step(case)
    return _unreadable(case)


def _sweep(args: argparse.Namespace) -> int:
    from .pipeline import sweep
    from .terminal import Progress, print_evidence

    with Progress() as progress:
        case = sweep(args.image, args.out, options=_options(args), report=progress)
    print_evidence(case)
    return _unreadable(case)


def _list(args: argparse.Namespace) -> int:
    from .case import open_case

    case = open_case(args.case)
    if args.arrow:
        import pyarrow as pa

        table = case.table("disks")
        with pa.ipc.new_stream(sys.stdout.buffer, table.schema) as out:
            out.write_table(table)
        return 0
    if args.json:
        import json

        print(json.dumps(case.disks(), indent=2, ensure_ascii=False))
        return 0
    from .terminal import print_lines

    print_lines(case)
    return 0


def _show(args: argparse.Namespace) -> int:
    from .case import open_case
    from .terminal import print_disk

    print_disk(open_case(args.case), args.disk, as_json=args.json)
    return 0


def _export(args: argparse.Namespace) -> int:
    from pathlib import Path

    from .case import open_case, open_disk
    from .errors import UsageError
    from .export import needed, write_raw
    from .export.write import rows_of

    case = open_case(args.case)
    row = case.disk(args.disk)
    target = Path(args.output) if args.output else case.path / "disks" / f"{row['disk_id']}.export.raw"
    if target.exists():
        raise UsageError("exists already", source=str(target))
    rows = rows_of(case.extents(row["disk_id"], "guest"))
    output = write_raw(open_disk(case, row["disk_id"]), target, rows)
    print(f"{output.path}: {output.size} bytes, {needed(rows)} of them with content, "
          f"sha256 {output.sha256 or 'not computed'}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    from .bench import bench
    from .source import open_image

    with open_image(args.image) as source:
        found = bench(source, args.seconds)
        bad = [(source.name, r) for r in source.unreadable]
    if args.json:
        import json

        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        from .terminal import print_bench

        print_bench(found)
    return _told_unreadable(bad, "the speeds are those of the rest")


def _demo(args: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(args.out)


def _unreadable(case: Case) -> int:
    bad = [(i["path"], r) for i in case.info["images"] for r in i["unreadable"]]
    return _told_unreadable(bad, "case.json has them all")


def _told_unreadable(bad: list[tuple[str, Any]], more: str) -> int:
    """One line for the ranges that the medium refused, and the exit status that says that there were some."""
    if not bad:
        return 0
    total = sum(length for _, (_, length) in bad)
    print(f"vmcarve: {bad[0][0]}: {total} bytes in {len(bad)} ranges could not be read, the first at offset "
          f"{bad[0][1][0]:#x} ({more})", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main())
