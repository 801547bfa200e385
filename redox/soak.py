"""Load for a long time: all answers stay right, and the daemon's memory does not grow."""

import re

from layers import make_layers
from machine import Machine
from transcript import answers

CLAIM = "under load for minutes or hours all answers are right, and the daemon's memory does not grow"
LAYERS = "--lower /lower --upper /upper"
# The seconds of load between two looks at the memory.
SECONDS = 50
# Caches fill in the first minutes. Later the memory may grow by this many KiB.
GROWTH = 1024
FIRST = 3


def run(system, scratch, log, minutes):
    disk = scratch / "disk"
    make_layers(system, scratch / "layers", disk)
    # The same load runs on redoxfs itself, so a fault of the system can show there, too.
    lines = [f"start overlayfs {LAYERS} --detach overlay", "mkdir /plain"]
    for _ in range(minutes):
        lines += [
            f"bg tries churn /scheme/overlay/dir 2 {SECONDS}",
            f"bg tries churn /plain 2 {SECONDS}",
            f"run tries churn /scheme/overlay/public 1 {SECONDS}",
            "wait",
            "wait",
            "run tries memory overlayfs",
        ]
    lines += ["run tries signal overlayfs 15", "sleep 2000", f"run overlayfs-fsck {LAYERS}"]
    output = Machine(
        system,
        disk,
        [("oneshot", "transcript /scheme/initfs/script")],
        files={"script": "\n".join(lines) + "\n"},
        programs=["overlayfs", "overlayfs-fsck", "tries"],
        # With two, the kernel has stopped under load (docs/redox.md).
        processors=1,
        timeout=120 + 150 * minutes,
        log=log / "soak",
    ).boot()
    said = answers(output.of_script())
    faults = [] if output.finished else ["the machine hung"]
    done, memory = 0, []
    for command, answer in said:
        line = " ".join(answer)
        if command.startswith(("run tries churn", "wait")):
            if counted := re.fullmatch(r"= ([0-9]+) operations, all right", line):
                done += int(counted[1])
            else:
                faults.append(f"{command}: {line}")
        elif command.startswith("run tries memory"):
            memory.append(int(line.removeprefix("= ").split()[0]))
        elif command.startswith("run overlayfs-fsck") and line != "= /upper has no damage.":
            faults.append(f"{command}: {line}")
    print(f"       {done} operations, {minutes} minutes; memory in KiB, each minute: {' '.join(map(str, memory))}")
    if len(memory) > FIRST and memory[-1] > memory[FIRST - 1] + GROWTH:
        faults.append(f"the memory grew from {memory[FIRST - 1]} to {memory[-1]} KiB")
    return faults
