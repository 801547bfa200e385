"""The time of operations through the overlay, as a multiple of the time on redoxfs itself, in the same boot."""

import re
import statistics

from layers import make_layers
from machine import Machine

CLAIM = "operations through the overlay cost no more, compared with redoxfs, than docs/redox.md says"
DAEMON = "overlayfs --lower /lower --lower /lower2 --upper /upper overlay"

# The number of boots. A ratio is the median of them: redoxfs itself takes another time in each boot.
BOOTS = 5
COUNT = 1000
# For operations that take less than a tick of the machine's clock.
MANY = 2 * COUNT

# For each operation the goal and the highest ratio that passes, both as a multiple of redoxfs's time. A limit is what
# docs/redox.md has, and a little more, since boots differ. So a ratio above it is a regression, also where the goal is
# missed. Operations without a goal are for comparison.
ROOT, OTHER = "as root", "as another user"
RATIOS = {
    (ROOT, "stat"): (0.10, 0.09),
    (ROOT, "missing"): (0.08, 0.09),
    (ROOT, "open"): (0.08, 0.085),
    (ROOT, "fstat"): (None, 0.16),
    (ROOT, "readdir"): (0.05, 0.05),
    (ROOT, "read"): (1.2, 1.22),
    (ROOT, "write"): (1.2, 1.25),
    (ROOT, "create"): (None, 1.08),
    (ROOT, "both"): (1.03, 1.05),
    (ROOT, "make"): (None, 1.13),
    (ROOT, "first"): (None, 0.29),
    (ROOT, "rename"): (1.03, 1.0),
    (OTHER, "create"): (1.4, 1.2),
    (OTHER, "make"): (None, 1.23),
    (OTHER, "rename"): (None, 1.05),
    (ROOT, "listing"): (1.2, 1.1),
    (ROOT, "overwrite"): (3, 3),
}
# A scheme that remembers what it opened, and otherwise passes each request on.
LEAST = ["bg passthrough least /upper3 1 known", "sleep 500", f"run costs /scheme/least {COUNT}", "kill"]
PAIRS = {
    ROOT: (f"run costs /upper2 {COUNT}", f"run costs /scheme/overlay {COUNT}"),
    OTHER: (f"as 1000 1000 costs /home {COUNT}", f"as 1000 1000 costs /scheme/overlay/home {COUNT}"),
}
# Operations on the same files, and creations and removals in one directory: on redoxfs itself, through the smallest
# scheme that is possible, and through the overlay. redoxfs takes a different time for each file and in each directory.
SAME_PLACES = ("/upper", "/scheme/least", "/scheme/overlay")
KEPT = tuple(f"run costs {place} {MANY} kept" for place in ("/upper", "/scheme/known", "/scheme/overlay"))
BOTH = tuple(f"run tries create {place}/d 400" for place in SAME_PLACES)
SAME_COMMANDS = [
    # This run makes the files, and redoxfs reads them for the first time.
    "run costs /upper 100 kept",
    KEPT[0],
    "bg passthrough known /upper 1 known",
    "sleep 500",
    KEPT[1],
    "kill",
    "mkdir /upper/d",
    BOTH[0],
    "bg least least /upper",
    "sleep 500",
    BOTH[1],
    "kill",
    "start overlayfs --lower /lower --upper /upper --detach overlay",
    KEPT[2],
    BOTH[2],
]
# Operations of the first boot: the commands on redoxfs and through the overlay, and the place of the time in an answer.
TRIED = {
    "listing": ("run tries many {}/many 300", ("/upper2", "/scheme/overlay"), r", listed in (\d+) us"),
    "overwrite": ("run tries overwrite {}/small", ("", "/scheme/overlay"), r", (\d+) us each"),
}
# More commands of the first boot, whose answers are printed.
MORE = [
    *(command.format(place) for command, places, _ in TRIED.values() for place in places),
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


def _boot(system, scratch, log, commands, daemons=(("notify", DAEMON),)):
    disk = scratch / "disk"
    make_layers(system, scratch / "layers", disk)
    return Machine(
        system,
        disk,
        [*daemons, ("oneshot", "transcript /scheme/initfs/script")],
        files={"script": "".join(f"{command}\n" for command in commands)},
        programs=["overlayfs", "costs", "least", "passthrough", "tries"],
        counting=True,
        timeout=900,
        log=log,
    ).boot()


def _tried(lines):
    """Returns the times of each operation of TRIED, on redoxfs and through the overlay."""
    answers = dict(zip(lines, lines[1:]))
    for name, (command, places, time) in TRIED.items():
        yield name, tuple(float(re.search(time, answers[f"$ {command.format(place)}"])[1]) for place in places)


def _same(system, scratch, log):
    """Returns the times of operations in one place: on redoxfs, through the smallest scheme and through the overlay.

    None if a creation was not measured.
    """
    output = _boot(system, scratch, log, SAME_COMMANDS, daemons=())
    answers = dict(zip(output.lines, output.lines[1:]))
    found = [re.match(r"= (\d+) us for both", answers.get(f"$ {command}", "")) for command in BOTH]
    if not all(found):
        return None
    kept = [_measure(output.lines, command) for command in KEPT]
    times = {name: tuple(costs[name] for costs in kept) for name in kept[0]}
    return times | {"both": tuple(float(time[1]) for time in found)}


def run(system, scratch, log):
    commands = [*(command for pair in PAIRS.values() for command in pair), *LEAST]
    times = {}  # By user and operation: the two times of each boot.
    least = {}  # By operation of root: the ratio of the smallest scheme in each boot.
    for turn in range(BOOTS):
        same = _same(system, scratch, log / f"same.{turn}")
        if same is None:
            return ["a creation was not measured"]
        for name, (redoxfs, passed, overlay) in same.items():
            times.setdefault((ROOT, name), []).append((redoxfs, overlay))
            least.setdefault((ROOT, name), []).append(passed / redoxfs)
        output = _boot(system, scratch, log / f"costs.{turn}", commands + (MORE if turn == 0 else []))
        if not output.finished:
            return ["the machine hung"]
        for command, line in zip(output.lines, output.lines[1:]):
            if command.startswith("$ run tries"):
                print(f"       {command[2:]}: {line[2:]}")
        for user, (below, above) in PAIRS.items():
            redoxfs, overlay = _measure(output.lines, below), _measure(output.lines, above)
            for name in redoxfs.keys() & overlay.keys():
                if user != ROOT or name not in same:
                    times.setdefault((user, name), []).append((redoxfs[name], overlay[name]))
        redoxfs, passed = _measure(output.lines, PAIRS[ROOT][0]), _measure(output.lines, LEAST[2])
        for name in (redoxfs.keys() & passed.keys()) - same.keys():
            least.setdefault((ROOT, name), []).append(passed[name] / redoxfs[name])
        if turn == 0:
            times |= {(ROOT, name): [pair] for name, pair in _tried(output.lines)}
    faults = [f"{name} {user} was not measured" for user, name in RATIOS if (user, name) not in times]
    for (user, name), pairs in sorted(times.items()):
        ratios = sorted(above / below for below, above in pairs)
        ratio = statistics.median(ratios)
        redoxfs, overlay = (statistics.median(side) for side in zip(*pairs))
        goal, limit = RATIOS.get((user, name), (None, ratio))
        said = "" if goal is None else f", {'misses' if round(ratio, 3) > goal else 'meets'} its goal {goal}"
        between = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
        if (user, name) in least:
            said += f"; a scheme that only passes on takes {statistics.median(least[user, name]):.3f}"
        print(f"       {name:9} {user:16} {redoxfs:8.0f} us {overlay:8.0f} us  {ratio:.3f}  ({between}){said}")
        if ratio > limit:
            faults.append(f"{name} {user} costs {ratio:.3f} of what it costs on redoxfs, and not at most {limit}")
    return faults
