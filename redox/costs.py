"""The time of operations through the overlay, as a multiple of the time on redoxfs itself, in one boot."""

from layers import make_layers
from machine import Machine

CLAIM = "operations through the overlay cost no more, compared with redoxfs, than docs/redox.md says"
DAEMON = "overlayfs --lower /lower --lower /lower2 --upper /upper overlay"

# The highest ratio of each operation that passes. It is a little above the measured one, as two runs differ by a few
# percent.
LIMITS = {
    "stat": 0.12,
    "missing": 0.11,
    "open": 0.11,
    "read": 1.3,
    "write": 1.4,
    "readdir": 0.06,
    "create": 1.1,
    "rename": 1.1,
}


def _measure(lines, command):
    """Returns the number that `command` printed for each operation."""
    begin = lines.index(f"$ {command}") + 1
    costs = {}
    for line in lines[begin:]:
        if line.startswith("$ "):
            break
        if line.startswith("= cost "):
            _, _, name, time = line.split()
            costs[name] = float(time)
    return costs


def run(system, scratch, log):
    disk = scratch / "disk"
    make_layers(system, scratch / "layers", disk)
    pairs = {
        "as root": ("run costs /upper2 1000", "run costs /scheme/overlay 1000"),
        "as another user": ("as 1000 1000 costs /home 1000", "as 1000 1000 costs /scheme/overlay/home 1000"),
    }
    commands = [command for pair in pairs.values() for command in pair]
    commands += ["run tries many /upper2/many 300", "run tries many /scheme/overlay/many 300"]
    commands += ["run tries overwrite /small", "run tries overwrite /scheme/overlay/small"]
    commands += ["start overlayfs --lower /lower2 --upper /upper3 --detach other"]
    commands += ["run tries change /small", "run tries change /scheme/other/small"]
    commands += ["run tries stat-for /scheme/overlay/b 500", "run tries beside /scheme/overlay/big /scheme/overlay/b"]
    script = "".join(f"{command}\n" for command in commands)
    output = Machine(
        system,
        disk,
        [("notify", DAEMON), ("oneshot", "transcript /scheme/initfs/script")],
        files={"script": script},
        programs=["overlayfs", "costs", "tries"],
        counting=True,
        timeout=600,
        log=log / "costs",
    ).boot()
    if not output.finished:
        return ["the machine hung"]
    faults = []
    for command, line in zip(output.lines, output.lines[1:]):
        if command.startswith("$ run tries"):
            print(f"       {command[2:]}: {line[2:]}")
    for user, (below, above) in pairs.items():
        redoxfs, overlay = _measure(output.lines, below), _measure(output.lines, above)
        for name, limit in LIMITS.items():
            if name not in redoxfs or name not in overlay:
                faults.append(f"{name} {user} was not measured")
                continue
            ratio = overlay[name] / redoxfs[name]
            print(f"       {name:8} {user:16} {redoxfs[name]:8.0f} us {overlay[name]:8.0f} us  {ratio:.3f}")
            if user == "as root" and ratio > limit:
                faults.append(f"{name} costs {ratio:.3f} of what it costs on redoxfs, and not at most {limit}")
    return faults
