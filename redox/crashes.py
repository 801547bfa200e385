"""The upper layer after a kill of the daemon or its supervisor, or after a power loss.

overlayfs-fsck finds it sound, and it can be mounted."""

import random

from layers import make_layers
from machine import Machine
from transcript import answers

CLAIM = "after kill -9 and after a power cut, at any moment under load, the upper layer is sound and can be mounted"
LAYERS = "--lower /lower --upper /upper"
PROGRAMS = ["overlayfs", "overlayfs-fsck", "tries"]
# The kinds of crash: power loss, or a kill of all processes, the first or the last one.
KINDS = ["power", "all", "first", "last"]


def _machine(system, disk, lines, log, **more):
    return Machine(
        system,
        disk,
        [("oneshot", "transcript /scheme/initfs/script")],
        files={"script": "\n".join(lines) + "\n"},
        programs=PROGRAMS,
        timeout=240,
        log=log,
        **more,
    )


# The commands after a crash. The first check repairs unfinished changes, the second one finds nothing, and the tree can
# be read and removed.
AFTER = [
    f"run overlayfs-fsck {LAYERS} -y",
    f"run overlayfs-fsck {LAYERS}",
    f"start overlayfs {LAYERS} --detach --replace overlay",
    "tree /scheme/overlay",
]


def look_after(system, disk, log, where):
    """Boots again after a crash. Returns the faults in the answers to AFTER. The repair itself may find damage."""
    output = _machine(system, disk, AFTER, log).boot()
    faults = [] if output.finished else [f"{where}: the machine hung afterwards"]
    for command, said in answers(output.of_script()):
        failed = any(line.startswith(("! ", "= exit status", "= signal")) for line in said)
        if failed and command in AFTER[1:]:
            faults.append(f"{where}: {command}: {' '.join(said)}")
    return faults


def _crash(kind):
    """Returns the line of the transcript that ends the load, and the seconds until the power loss."""
    if kind == "power":
        return "run say cut", random.uniform(0.1, 4)
    # After the kill of a daemon, the kernel never answers the requests that the daemon was working on. The manager of
    # namespaces waits for every open. If it waits for such a request, the whole system hangs. So this boot ends here.
    return f"run tries signal overlayfs 9 {kind}", 4


def run(system, scratch, log, count):
    faults = []
    for kind in KINDS:
        for turn in range(count):
            disk = scratch / "disk"
            make_layers(system, scratch / "layers", disk)
            crash, cut = _crash(kind)
            lines = [
                f"start overlayfs {LAYERS} --detach overlay",
                "bg tries churn /scheme/overlay/public 2 600",
                # The supervisor makes the files of a user. So a kill of it meets it at work.
                "bg transcript -c as 1000 1000 tries churn /scheme/overlay/home 1 600",
                f"sleep {random.randrange(20, 3000)}",
                crash,
                "sleep 10000",
            ]
            _machine(system, disk, lines, log / f"crash.{kind}.{turn}", processors=1 + turn % 2, cut=cut).boot()
            faults += look_after(system, disk, log / f"crash.{kind}.{turn}.after", f"{kind}, turn {turn}")
    return faults
