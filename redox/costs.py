"""The time of operations through the overlay, as a multiple of the time on redoxfs itself, in the same boot."""

import statistics

from layers import make_layers
from machine import Machine

CLAIM = "operations through the overlay cost no more, compared with redoxfs, than docs/redox.md says"
DAEMON = "overlayfs --lower /lower --lower /lower2 --upper /upper overlay"

# The number of boots. A ratio is the median of them: redoxfs itself takes another time in each boot.
BOOTS = 5
COUNT = 1000

# The highest ratio of each operation that passes. Operations without one are for comparison.
LIMITS = {
    "stat": 0.10,
    "missing": 0.11,
    "open": 0.09,
    "readdir": 0.05,
    "read": 1.3,
    "write": 1.3,
    "create": 1.1,
    "first": 0.3,
    "rename": 1.1,
}
PAIRS = {
    "as root": (f"run costs /upper2 {COUNT}", f"run costs /scheme/overlay {COUNT}"),
    "as another user": (f"as 1000 1000 costs /home {COUNT}", f"as 1000 1000 costs /scheme/overlay/home {COUNT}"),
}
# Commands of the first boot, whose answers are printed.
MORE = [
    "run tries many /upper2/many 300",
    "run tries many /scheme/overlay/many 300",
    "run tries overwrite /small",
    "run tries overwrite /scheme/overlay/small",
    "start overlayfs --lower /lower2 --upper /upper3 --detach other",
    "run tries change /small",
    "run tries change /scheme/other/small",
    "run tries stat-for /scheme/overlay/b 500",
    "run tries beside /scheme/overlay/big /scheme/overlay/b",
]


def _measure(lines, command):
    """Returns the number that `command` printed for each operation."""
    costs = {}
    for line in lines[lines.index(f"$ {command}") + 1 :]:
        if line.startswith("$ "):
            break
        if line.startswith("= cost "):
            _, _, name, time = line.split()
            costs[name] = float(time)
    return costs


def _boot(system, scratch, log, commands):
    disk = scratch / "disk"
    make_layers(system, scratch / "layers", disk)
    return Machine(
        system,
        disk,
        [("notify", DAEMON), ("oneshot", "transcript /scheme/initfs/script")],
        files={"script": "".join(f"{command}\n" for command in commands)},
        programs=["overlayfs", "costs", "tries"],
        counting=True,
        timeout=900,
        log=log,
    ).boot()


def run(system, scratch, log):
    commands = [command for pair in PAIRS.values() for command in pair]
    times = {}  # By user and operation: the two times of each boot.
    for turn in range(BOOTS):
        output = _boot(system, scratch, log / f"costs.{turn}", commands + (MORE if turn == 0 else []))
        if not output.finished:
            return ["the machine hung"]
        for command, line in zip(output.lines, output.lines[1:]):
            if command.startswith("$ run tries"):
                print(f"       {command[2:]}: {line[2:]}")
        for user, (below, above) in PAIRS.items():
            redoxfs, overlay = _measure(output.lines, below), _measure(output.lines, above)
            for name in redoxfs.keys() & overlay.keys():
                times.setdefault((user, name), []).append((redoxfs[name], overlay[name]))
    faults = [f"{name} {user} was not measured" for user in PAIRS for name in LIMITS if (user, name) not in times]
    for (user, name), pairs in sorted(times.items()):
        ratios = sorted(above / below for below, above in pairs)
        ratio = statistics.median(ratios)
        redoxfs, overlay = (statistics.median(side) for side in zip(*pairs))
        between = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        print(f"       {name:8} {user:16} {redoxfs:8.0f} us {overlay:8.0f} us  {ratio:.3f}  ({between})")
        if user == "as root" and ratio > LIMITS.get(name, ratio):
            faults.append(f"{name} costs {ratio:.3f} of what it costs on redoxfs, and not at most {LIMITS[name]}")
    return faults
