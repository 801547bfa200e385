"""A Redox in QEMU: makes its initfs and its disk, boots it, and returns its output."""

import dataclasses
import json
import os
import re
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

# The programs of every initfs, and the units of base that start them.
BASE_PROGRAMS = ["init", "logd", "ramfs", "randd", "zerod", "lived", "redoxfs"]
BASE_UNITS = ["00_logd.service", "00_nulld.service", "00_randd.service", "00_zerod.service", "ramfs@.service"]
BEGIN = "=== the first step"
END = "=== the end of all steps"

# After so many seconds without output before the first step, the machine counts as hung. About one boot in twenty hangs
# before it starts a program of this project.
BOOT_SECONDS = 60
BOOTS = 4


class Failed(Exception):
    """An error that is no fault of the overlay. The program prints its sentence."""


@dataclasses.dataclass
class System:
    """A folder with a built system, as redox/README.md describes it, and the folders of this project's programs."""

    folder: Path
    programs: Path
    loader: Path

    def check(self):
        parts = ["kernel", "bootstrap", "rustflags", "versions", "host/redoxfs-ar", "host/redox-initfs-ar"]
        parts += [f"bin/{name}" for name in BASE_PROGRAMS] + [f"init.d/{name}" for name in BASE_UNITS]
        missing = [part for part in parts if not (self.folder / part).exists()]
        if missing:
            raise Failed(f"{self.folder} lacks {', '.join(missing)}. redox/README.md lists the files of a system.")

    def make_disk(self, tree: Path, disk: Path, megabytes: int):
        """Makes a redoxfs with the files of a directory."""
        disk.unlink(missing_ok=True)
        with open(disk, "wb") as file:
            file.truncate(megabytes << 20)
        _host([self.folder / "host/redoxfs-ar", disk, tree])


@dataclasses.dataclass
class Output:
    """The output of a machine, and the way it ended."""

    lines: list
    finished: bool
    silent: float  # The seconds without output before the end.

    def of_script(self):
        """Returns the lines of the transcript, without the output of other programs."""
        return [line for line in self.lines if line[:2] in ("$ ", "= ", "! ")]


def _host(command):
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        raise Failed(f"{command[0]} failed: {ended.stdout}{ended.stderr}")


@dataclasses.dataclass
class Machine:
    """One boot.

    Each step is (type, command), with a type of init: notify, scheme NAME or oneshot. Or it is (ram, NAME).
    """

    system: System
    disk: Path
    steps: list
    files: dict = dataclasses.field(default_factory=dict)  # Name below /scheme/initfs: its text.
    programs: list = dataclasses.field(default_factory=list)
    root: str = "file"  # The scheme of the root. With another one, the units of the disk run too, and end the test.
    processors: int = 1
    memory: int = 1024
    counting: bool = False  # A clock that counts instructions.
    timeout: float = 120
    cut: float | None = None  # Seconds from the line "cut" of the transcript, or its last signal, to the power loss.
    log: Path | None = None

    def boot(self) -> Output:
        """Boots, and keeps the disk in its final state."""
        with tempfile.TemporaryDirectory(prefix="redox-vm.") as scratch:
            initfs = Path(scratch) / "initfs"
            self._make_initfs(Path(scratch) / "tree", initfs)
            for _ in range(BOOTS):
                if output := self._run(Path(scratch), initfs):
                    return output
        raise Failed(f"The system hung {BOOTS} times before the first step; {self.log} has what it printed.")

    def _make_initfs(self, tree: Path, image: Path):
        units = tree / "lib/init.d"
        (tree / "bin").mkdir(parents=True)
        units.mkdir(parents=True)
        for name in BASE_PROGRAMS:
            shutil.copy(self.system.folder / "bin" / name, tree / "bin" / name)
        for name in ["transcript", "say", *self.programs]:
            shutil.copy(self.system.programs / name, tree / "bin" / name)
        for program in (tree / "bin").iterdir():
            program.chmod(0o755)
            _host(["strip", program])
        for name, text in self.files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        for name in BASE_UNITS:
            shutil.copy(self.system.folder / "init.d" / name, units / name)

        def unit(name, after, command=None, kind=None):
            lines = ["[unit]", f"description = {json.dumps(name)}", f"requires_weak = {json.dumps(after)}"]
            if name == "00_runtime.target":
                lines.append("default_dependencies = false")
            if command:
                program, *arguments = command.split()
                lines += ["[service]", f"cmd = {json.dumps(program)}"]
                lines += [f"args = {json.dumps(arguments)}", f"type = {kind}"]
            (units / name).write_text("\n".join(lines) + "\n")

        unit("00_runtime.target", [name for name in BASE_UNITS if "@" not in name])
        unit("10_lived.service", [], "lived", '"notify"')
        unit("50_rootfs.service", ["10_lived.service"], f"redoxfs /scheme/disk.live/0 {self.root}", '"oneshot"')
        before = ["50_rootfs.service"]
        end = [("oneshot", f"say {END}")] if self.root == "file" else []
        for index, (kind, command) in enumerate([("oneshot", f"say {BEGIN}"), *self.steps, *end]):
            if kind == "ram":
                before = [*before, f"ramfs@{command}.service"]
                continue
            name = f"{600 + index}_step.service"
            scheme = kind.removeprefix("scheme ")
            unit(name, before, command, json.dumps(kind) if scheme == kind else f"{{ scheme = {json.dumps(scheme)} }}")
            before = [name]
        unit("90_initfs.target", before)
        _host([self.system.folder / "host/redox-initfs-ar", tree, self.system.folder / "bootstrap", "-o", image])

    def _run(self, scratch: Path, initfs: Path) -> Output | None:
        """Returns None if the system did not reach the first step. The disk is then unchanged."""
        monitor = scratch / "monitor"
        command = ["qemu-system-x86_64", "-machine", "q35", "-cpu", "max,la57=off", "-m", str(self.memory)]
        command += ["-smp", str(self.processors), "-display", "none", "-vga", "none", "-nodefaults", "-no-reboot"]
        command += ["-serial", "stdio", "-monitor", "none", "-qmp", f"unix:{monitor},server=on,wait=off"]
        command += ["-kernel", self.system.loader, "-initrd", f"{self.system.folder}/kernel,{initfs},{self.disk}"]
        # Without KVM: most containers do not have it, and its clock cannot count instructions.
        command += ["-accel", "tcg,thread=" + ("single" if self.counting else "multi"), "-append", "loader"]
        if self.counting:
            command += ["-icount", "shift=1,sleep=off"]
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            text, finished, silent = self._watch(machine)
            if self.log:
                self.log.write_text(text)
            if BEGIN not in text:
                return None
            registers = self._save(monitor, text)
            if self.log and not finished:
                # The place in the kernel where each processor is tells why the machine hangs.
                self.log.write_text(f"{text}\n{registers}")
        finally:
            machine.kill()
            machine.wait()
            monitor.unlink(missing_ok=True)
        return Output(text.splitlines(), finished, silent)

    def _watch(self, machine):
        """Reads the output of the machine until the last step, a panic, or the timeout."""
        last = time.monotonic()
        end = last + BOOT_SECONDS
        text, begun = "", False
        with selectors.DefaultSelector() as selector:
            selector.register(machine.stdout, selectors.EVENT_READ)
            while (now := time.monotonic()) < end:
                if not selector.select(min(0.2, end - now)):
                    continue
                part = os.read(machine.stdout.fileno(), 65536)
                if not part:
                    break
                last = time.monotonic()
                text += part.decode("utf-8", "replace").replace("\r", "")
                if END in text:
                    return text, True, 0
                if not begun:
                    begun = BEGIN in text
                    end = now + (self.timeout if begun else BOOT_SECONDS)
                if "KERNEL PANIC" in text:
                    end = min(end, now + 3)
                if self.cut is not None and re.search(r"^(= cut|\$ run tries signal)", text, re.MULTILINE):
                    end = min(end, now + self.cut)
                    self.cut = None
        return text, False, time.monotonic() - last

    def _save(self, monitor: Path, text: str) -> str:
        """Stops the machine between two instructions, and writes its disk from its memory back to the file.

        Returns the registers of its processors.
        """
        place = re.search(r"loader: disk ([0-9a-f]{16}) ([0-9a-f]{16})", text)
        if not place:
            raise Failed(f"The loader did not print the address of the disk. The machine printed {text!r}.")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(monitor))
            stream = connection.makefile("rw")
            stream.readline()
            address, size = (int(digits, 16) for digits in place.groups())
            for command, arguments in [
                ("qmp_capabilities", {}),
                ("stop", {}),
                ("pmemsave", {"val": address, "size": size, "filename": str(self.disk.absolute())}),
                ("human-monitor-command", {"command-line": "info registers -a"}),
            ]:
                stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
                stream.flush()
                while not {"return", "error"} & (answer := json.loads(stream.readline())).keys():
                    pass
                if "error" in answer:
                    raise Failed(f"{command} of QEMU failed: {answer['error']}")
            return answer["return"]
