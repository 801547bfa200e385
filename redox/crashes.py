"""What is left after the daemon or its supervisor is killed, or the power goes: overlayfs-fsck finds a sound upper layer, and it can be mounted."""

import random

from layers import make_layers
from machine import Machine
from transcript import answers

CLAIM = "after kill -9 and after a power cut, at any moment under load, the upper layer is sound and can be mounted"
LAYERS = "--lower /lower --upper /upper"
PROGRAMS = ["overlayfs", "overlayfs-fsck", "tries"]
# What is killed, or that the power goes.
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


# What must be so after a crash: the check repairs what was under way, then finds nothing, and the tree can be read and removed.
AFTER = [
    f"run overlayfs-fsck {LAYERS} -y",
    f"run overlayfs-fsck {LAYERS}",
    f"start overlayfs {LAYERS} --detach --replace overlay",
    "tree /scheme/overlay",
]


def _sound(said, where):
    """The faults in the answers to AFTER. The repair itself may find something."""
    faults = []
    for command, answers in said:
        failed = any(line.startswith(("! ", "= exit status", "= signal")) for line in answers)
        if failed and command in AFTER[1:]:
            faults.append(f"{where}: {command}: {' '.join(answers)}")
    return faults


def _crash(kind):
    """What ends the load: a line for the transcript, and how many seconds after it the power goes."""
    if kind == "power":
        return "run say cut", random.uniform(0.1, 4)
    # The kernel leaves callers waiting whose request a killed daemon had in hand. If one of them is the manager of namespaces, which waits for
    # every open, the whole system hangs, so nothing more is tried in this boot.
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
                "bg tries churn /scheme/overlay/dir 1 600",
                f"sleep {random.randrange(20, 3000)}",
                crash,
                "sleep 10000",
            ]
            _machine(system, disk, lines, log / f"crash.{kind}.{turn}", processors=1 + turn % 2, cut=cut).boot()
            output = _machine(system, disk, AFTER, log / f"crash.{kind}.{turn}.after").boot()
            if not output.finished:
                faults.append(f"{kind}, turn {turn}: the machine hung afterwards")
            faults += _sound(answers(output.of_script()), f"{kind}, turn {turn}")
    return faults
