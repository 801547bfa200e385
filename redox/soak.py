"""Load for a long time: all answers stay right, and the daemon's memory does not grow.

The load ends with a power loss. Then the upper layer is sound, and can be mounted."""

import re

from crashes import LAYERS, look_after
from layers import make_layers
from machine import Machine
from transcript import answers

CLAIM = "under load for minutes or hours all answers are right, and the daemon's memory does not grow"
# The seconds of load between two looks at the memory, by the clock of the machine. On a busy host they last longer.
SECONDS = 50
# After so many seconds without an answer, the machine counts as hung.
SILENT = 900
# Caches fill in the first rounds. Later the memory may grow by this many KiB.
GROWTH = 1024
FIRST = 3
# The megabytes of the disk, and those that each minute adds: under this load redoxfs fills up, also without an overlay.
DISK, PER_MINUTE = 64, 4


def run(system, scratch, log, minutes):
    disk = scratch / "disk"
    make_layers(system, scratch / "layers", disk, DISK + PER_MINUTE * minutes)
    # The same load runs on redoxfs itself, so a fault of the system can show there, too.
    lines = [f"start overlayfs {LAYERS} --detach overlay", "mkdir /plain"]
    for _ in range(60 * minutes // SECONDS + 1):
        lines += [
            f"bg tries churn /scheme/overlay/dir 2 {SECONDS}",
            f"bg tries churn /plain 2 {SECONDS}",
            f"as 1000 1000 tries churn /scheme/overlay/home 1 {SECONDS}",
            "wait",
            "wait",
            "run tries memory overlayfs",
        ]
    output = Machine(
        system,
        disk,
        [("oneshot", "transcript /scheme/initfs/script")],
        files={"script": "\n".join(lines) + "\n"},
        programs=["overlayfs", "tries"],
        # With two, the kernel has stopped under load (docs/redox.md).
        processors=1,
        timeout=60 * minutes,
        log=log / "soak",
    ).boot()
    faults = ["the machine hung"] if output.silent > SILENT else []
    done, memory = 0, []
    # The power loss leaves the last command without an answer.
    for command, answer in answers(output.of_script())[:-1]:
        line = " ".join(answer)
        if command.startswith(("as ", "wait")):
            if counted := re.fullmatch(r"= ([0-9]+) operations, all right", line):
                done += int(counted[1])
            else:
                faults.append(f"{command}: {line}")
        elif command.startswith("run tries memory"):
            memory.append(int(line.removeprefix("= ").split()[0]))
    print(f"       {done} operations, {minutes} minutes; memory in KiB, each round: {' '.join(map(str, memory))}")
    if len(memory) > FIRST and memory[-1] > memory[FIRST - 1] + GROWTH:
        faults.append(f"the memory grew from {memory[FIRST - 1]} to {memory[-1]} KiB")
    return faults + look_after(system, disk, log / "soak.after", "afterwards")
