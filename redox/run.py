"""Runs the checks of checks/ on a booted Redox and prints a table.

scripts/redox-vm builds the programs, then calls this.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import costs
import crashes
import soak
from layers import make_layers
from machine import Failed, Machine, System
from transcript import Check

HERE = Path(__file__).parent
PROGRAMS = ["overlayfs", "overlayfs-fsck", "operations", "passthrough", "tries"]


def run_check(system, check, scratch, log):
    """Returns the faults of a check, from all its boots."""
    faults = []
    for processors in check.processors:
        for turn in range(check.times):
            disk = scratch / "disk"
            make_layers(system, scratch / "layers", disk, check.megabytes)
            for index, part in enumerate(check.parts):
                # With another root, a unit of the disk runs the script: see layers.py.
                script = [("oneshot", "transcript /scheme/initfs/script")] if check.root == "file" else []
                machine = Machine(
                    system,
                    disk,
                    [*part.steps, *script],
                    files={"script": part.script()},
                    programs=PROGRAMS,
                    root=check.root,
                    processors=processors,
                    timeout=check.timeout,
                    log=log / f"{check.name}.{processors}.{turn}.{index}",
                )
                output = machine.boot()
                where = f"{processors} processors, boot {turn + 1}: " if check.times * len(check.processors) > 1 else ""
                if not output.finished:
                    faults.append(f"{where}the machine hung")
                faults += [where + fault for fault in part.compare(output.of_script())]
                if not output.finished:
                    break
    return faults


def main():
    parser = argparse.ArgumentParser(prog="scripts/redox-vm")
    parser.add_argument("folder", type=Path, help="a built system, as redox/README.md describes it")
    parser.add_argument("names", nargs="*", help="only these checks; costs, crashes and soak are such names, too")
    parser.add_argument("--programs", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--loader", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, default=Path("target-redox/log"), help="where the machines' output is kept")
    parser.add_argument("--crashes", type=int, default=10, help="how often each kind of crash is tried")
    parser.add_argument("--minutes", type=int, default=5, help="how long the soak is")
    options = parser.parse_args()
    system = System(options.folder, options.programs, options.loader)
    system.check()
    options.log.mkdir(parents=True, exist_ok=True)

    checks = {path.stem: Check(path) for path in sorted((HERE / "checks").glob("*.check"))}
    known = [*checks, "costs", "crashes", "soak"]
    if unknown := set(options.names) - set(known):
        raise Failed(f"Unknown checks: {', '.join(sorted(unknown))}. The checks are {', '.join(known)}.")
    chosen = options.names or known

    print((system.folder / "versions").read_text(), end="")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="redox-vm.") as scratch:
        scratch = Path(scratch)
        for name in chosen:
            begin = time.monotonic()
            if name == "costs":
                claim, faults = costs.CLAIM, costs.run(system, scratch, options.log)
            elif name == "crashes":
                claim, faults = crashes.CLAIM, crashes.run(system, scratch, options.log, options.crashes)
            elif name == "soak":
                claim, faults = soak.CLAIM, soak.run(system, scratch, options.log, options.minutes)
            elif missing := [need for need in checks[name].needs if not (system.folder / "bin" / need).exists()]:
                claim, faults = checks[name].claim, [f"DID NOT RUN: bin/ of the system has no {', '.join(missing)}"]
            else:
                claim, faults = checks[name].claim, run_check(system, checks[name], scratch, options.log)
            print(f"{'FAIL' if faults else 'ok  '} {name:12} {time.monotonic() - begin:6.0f} s  {claim}", flush=True)
            for fault in faults:
                print(f"       {fault}", flush=True)
            failed += bool(faults)
    print(f"{len(chosen) - failed} of {len(chosen)} checks passed; {options.log} has the output of the machines.")
    return failed != 0


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("The files of the layers have several owners, so this program must run as root.")
    try:
        sys.exit(main())
    except Failed as failure:
        sys.exit(str(failure))
