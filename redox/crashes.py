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
# So many crashes follow each other on one disk.
CHAIN = 10


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


def _faults_after(output, where):
    """Returns the faults in the answers to AFTER. The repair itself may find damage."""
    said = dict(answers(output.of_script()))
    faults = []
    for command in AFTER[1:]:
        lines = said.get(command, ["no answer"])
        if any(line.startswith(("no answer", "! ", "= exit status", "= signal")) for line in lines):
            faults.append(f"{where}: {command}: {' '.join(lines)}")
    return faults


def look_after(system, disk, log, where):
    """Boots again after a crash. Returns the faults that this boot finds."""
    output = _machine(system, disk, AFTER, log).boot()
    return _faults_after(output, where) + ([] if output.finished else [f"{where}: the machine hung afterwards"])


def _crash(kind):
    """Returns the line of the transcript that ends the load, and the seconds until the power loss."""
    if kind == "power":
        return "run say cut", random.uniform(0.1, 4)
    # After the kill of a daemon, the kernel never answers the requests that the daemon was working on. The manager of
    # namespaces waits for every open. If it waits for such a request, the whole system hangs. So this boot ends here.
    return f"run tries signal overlayfs 9 {kind}", 2


def _load(turn):
    """Returns the commands that begin the load, in new directories."""
    public, home = f"/scheme/overlay/public/{turn}", f"/scheme/overlay/home/{turn}"
    return [
        f"mkdir {public}",
        f"as 1000 1000 transcript -c mkdir {home}",
        f"bg tries churn {public} 2 600",
        # The supervisor makes the files of a user. So a kill of it meets it at work.
        f"bg transcript -c as 1000 1000 tries churn {home} 1 600",
        f"sleep {random.randrange(20, 3000)}",
    ]


def _chain(system, disk, kind, turns, log):
    """Crashes again and again on one disk. Each boot first looks at what the crash before has left."""
    faults, where = [], None
    for turn in turns:
        first = AFTER if where else [f"start overlayfs {LAYERS} --detach overlay"]
        load = _load(turn)
        crash, cut = _crash(kind)
        lines = [*first, *load, crash, "sleep 10000"]
        output = _machine(system, disk, lines, log / f"crash.{kind}.{turn}", processors=1 + turn % 2, cut=cut).boot()
        if where:
            faults += _faults_after(output, where)
        where = f"{kind}, turn {turn}"
        if f"$ {load[0]}" not in output.lines:
            faults.append(f"{where}: the machine hung before the load")
        elif f"$ {crash}" not in output.lines:
            # With two processors the kernel itself does that: see docs/redox.md.
            print(f"       {where}: the machine hung under load, before the crash", flush=True)
    return faults + look_after(system, disk, log / f"crash.{kind}.{turns[-1]}.after", where)


def run(system, scratch, log, count):
    faults = []
    for begin in range(0, count, CHAIN):
        turns = range(begin, min(begin + CHAIN, count))
        for kind in KINDS:
            disk = scratch / "disk"
            make_layers(system, scratch / "layers", disk)
            found = _chain(system, disk, kind, turns, log)
            print(f"       {kind}, turns {turns[0]} to {turns[-1]}: {len(found)} faults", flush=True)
            faults += found
    return faults
