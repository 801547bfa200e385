"""The layers on the disk of every check.

These are /lower, /lower2, and the empty /upper, /upper2 and /upper3. /home belongs to user 1000. /small and
/lower2/small have fifty files each. /second is a disk itself, with an empty directory /upper.
"""

import os
import shutil

from machine import END

PATTERN_KIB = 4096
# Programs of a whole system. Checks that need them name them.
OPTIONAL_PROGRAMS = ["ptyd", "login", "ion"]
SECOND_MEGABYTES = 8


def make_layers(system, tree, disk, megabytes=64):
    """Makes a disk with the layers."""
    shutil.rmtree(tree, ignore_errors=True)

    def directory(name, mode=0o755, owner=0):
        (tree / name).mkdir(parents=True)
        os.chown(tree / name, owner, owner)
        (tree / name).chmod(mode)

    def file(name, text, mode=0o644, owner=0):
        (tree / name).write_bytes(text.encode() if isinstance(text, str) else text)
        os.chown(tree / name, owner, owner)
        (tree / name).chmod(mode)

    for name in ["upper", "upper2", "upper3", "lower", "lower2", "lower2/dir"]:
        directory(name)
    directory("home", 0o755, 1000)
    for name in ["small", "lower2/small"]:
        directory(name)
        for index in range(50):
            file(f"{name}/file{index}", "small " * 200)
    file("lower2/below", "below")
    file("lower2/dir/w", "w")
    for name in ["bin", "dir", "dir/sub", "moving", "deep", "deep/x"]:
        directory(f"lower/{name}")
    directory("lower/etc")
    file("lower/etc/passwd", "user;1000;1000;user;/home;/usr/bin/ion\n")
    file("lower/etc/group", "user;x;1000;user\n")
    file("lower/etc/shadow", "user;\n", 0o600)
    directory("lower/private", 0o700)
    directory("lower/public", 0o777)
    directory("lower/home", 0o755, 1000)
    directory("lower/sticky", 0o1777)
    file("lower/a", "lower a")
    file("lower/b", "lower b")
    file("lower/secret", "secret", 0o600)
    file("lower/mine", "mine", 0o644, 1000)
    file("lower/private/p", "p")
    file("lower/home/h", "h")
    file("lower/sticky/roots", "roots")
    for name in ["dir/x", "dir/y", "dir/sub/z", "moving/1", "moving/2", "moving/3", "deep/x/file"]:
        file(f"lower/{name}", name.rsplit("/")[-1])
    file("lower/letters", "abcdefghijklmnopqrstuvwxyz")
    words = (word * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF for word in range(PATTERN_KIB * 128))
    file("lower/big", b"".join(word.to_bytes(8, "little") for word in words))
    for name in ["say", "tries", "transcript"]:
        shutil.copy(system.programs / name, tree / "lower/bin" / name)
        (tree / "lower/bin" / name).chmod(0o755)
    directory("on-second/upper")
    system.make_disk(tree / "on-second", tree / "second", SECOND_MEGABYTES)
    shutil.rmtree(tree / "on-second")
    _make_system(tree / "lower/usr", system)
    system.make_disk(tree, disk, megabytes)


def _make_system(usr, system):
    """Makes the units that init finds after the initfs, if its root is on the overlay.

    They start ptyd if the system has it, run the script and end the test.
    """
    (usr / "bin").mkdir(parents=True)
    (usr / "lib/init.d").mkdir(parents=True)
    programs = [system.programs / name for name in ["say", "transcript"]]
    programs += [program for name in OPTIONAL_PROGRAMS if (program := system.folder / "bin" / name).exists()]
    for program in programs:
        shutil.copy(program, usr / "bin" / program.name)
        (usr / "bin" / program.name).chmod(0o755)
    if (usr / "bin/ptyd").exists():
        unit = '[unit]\ndescription = "terminals"\n[service]\ncmd = "ptyd"\ntype = "notify"\n'
        (usr / "lib/init.d/00_ptyd.service").write_text(unit)
    script = '[service]\ncmd = "transcript"\nargs = ["/scheme/initfs/script"]\ntype = "oneshot"\n'
    end = f'[service]\ncmd = "say"\nargs = ["{END}"]\ntype = "oneshot"\n'
    for name, after, service in [("10_script", '"00_ptyd.service"', script), ("20_end", '"10_script.service"', end)]:
        unit = f'[unit]\ndescription = "{name}"\nrequires_weak = [{after}]\n{service}'
        (usr / "lib/init.d" / f"{name}.service").write_text(unit)
