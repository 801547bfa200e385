"""What is left after the daemon is killed, or the power goes: overlayfs-fsck finds a sound upper layer, and the next daemon serves it."""

import random

from layers import make_layers
from machine import Machine

CLAIM = "after kill -9 and after a power cut, at any moment under load, the upper layer is sound and can be mounted"
LAYERS = "--lower /lower --upper /upper"
PROGRAMS = ["overlayfs", "overlayfs-fsck", "tries"]
TURNS_OF_ONE_BOOT = 10


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


def _answers(lines):
    """The commands of a transcript with the lines that each printed."""
    said = []
    for line in lines:
        if line.startswith("$ "):
            said.append((line[2:], []))
        elif said:
            said[-1][1].append(line)
    return said


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


def _kills(system, scratch, log, count):
    faults = []
    for boot in range(-(-count // TURNS_OF_ONE_BOOT)):
        disk = scratch / "disk"
        make_layers(system, scratch / "layers", disk)
        lines = [f"start overlayfs {LAYERS} --detach overlay"]
        for turn in range(TURNS_OF_ONE_BOOT):
            which = random.choice(["", " first", " last"])
            lines += [
                f"bg tries churn /scheme/overlay/public 2 {turn + 2}",
                "bg tries churn /scheme/overlay/dir 1 1",
                f"sleep {random.randrange(20, 900)}",
                f"run tries signal overlayfs 9{which}",
                "sleep 200",
                # A keeper's death leaves the daemon at work, and the other way round the keeper takes the name away and ends.
                "run tries signal overlayfs 9",
                "wait",
                "wait",
                *AFTER,
                "rmrf /scheme/overlay/public",
                "mkdir /scheme/overlay/public",
                "rmrf /scheme/overlay/dir",
                "mkdir /scheme/overlay/dir",
            ]
        output = _machine(system, disk, lines, log / f"kills.{boot}", processors=1 + boot % 2).boot()
        if not output.finished:
            faults.append(f"boot {boot}: the machine hung")
        faults += _sound(_answers(output.of_script()), f"boot {boot}")
    return faults


def _cuts(system, scratch, log, count):
    faults = []
    for turn in range(count):
        disk = scratch / "disk"
        make_layers(system, scratch / "layers", disk)
        lines = [
            f"start overlayfs {LAYERS} --detach overlay",
            "run say cut",
            "bg tries churn /scheme/overlay/public 2 60",
            "run tries churn /scheme/overlay/dir 1 60",
        ]
        _machine(system, disk, lines, log / f"cut.{turn}", processors=1 + turn % 2, cut=random.uniform(0.1, 4)).boot()
        output = _machine(system, disk, AFTER, log / f"cut.{turn}.after").boot()
        if not output.finished:
            faults.append(f"cut {turn}: the machine hung")
        faults += _sound(_answers(output.of_script()), f"cut {turn}")
    return faults


def run(system, scratch, log, count):
    return _kills(system, scratch, log, count) + _cuts(system, scratch, log, count)
