//! podman and buildah with storage of their own, which `overlayfs-fuse` mounts.

use std::fs;
use std::path::Path;
use std::process::Command;

use test_common::Setup;

use crate::run;

/// The mount program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_overlayfs-fuse");

/// The options of a container. Its limits are below those of the session, which it may not raise.
pub const OPTIONS: [&str; 3] = ["--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000"];

/// The two programs. Their storage is below the root of the setup, where they run.
pub struct Podman {
    pub setup: Setup,
}

impl Podman {
    /// Runs podman, and returns what it prints. Panics if it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.run_with(PROGRAM, arguments)
    }

    /// Runs podman as [`Podman::run`] with another mount program, or with the kernel's overlayfs if
    /// the name is empty.
    pub fn run_with(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = self.command("podman", program);
        command.arg("--tmpdir").arg(self.setup.dir("tmp")).args(["--cgroup-manager=cgroupfs", "--runtime=runc"]);
        finish(command.args(arguments))
    }

    /// Runs a command in a container of an image that is removed afterwards.
    pub fn in_container(&self, image: &str, command: &[&str]) -> String {
        self.run(&[&["run", "--rm"], &OPTIONS[..], &[image], command].concat())
    }

    /// Runs buildah, and returns what it prints, without a newline at the end.
    pub fn buildah(&self, arguments: &[&str]) -> String {
        finish(self.command("buildah", PROGRAM).args(arguments)).trim().to_owned()
    }

    fn command(&self, name: &str, program: &str) -> Command {
        let mut command = run::command(name);
        for (option, name) in [("--root", "root"), ("--runroot", "run")] {
            command.arg(option).arg(self.setup.dir(name));
        }
        command.arg("--storage-driver=overlay");
        if !program.is_empty() {
            command.arg(format!("--storage-opt=overlay.mount_program={program}"));
        }
        command.current_dir(self.setup.root());
        command
    }
}

/// Runs a command, and returns what it prints. Panics if it fails.
pub fn finish(command: &mut Command) -> String {
    let output = run::finish(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} fails:\n{out}{err}");
    out.into_owned()
}

impl Drop for Podman {
    /// podman leaves its storage mounted on itself.
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let below =
            |line: &&str| line.split(' ').nth(1).is_some_and(|point| Path::new(point).starts_with(self.setup.root()));
        for line in mounts.lines().filter(below).collect::<Vec<_>>().into_iter().rev() {
            run::finish(run::command("umount").arg("-l").args(line.split(' ').nth(1)));
        }
    }
}
