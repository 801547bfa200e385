//! Differential tests: the same scripts run in a mount and in an ordinary directory with the same
//! contents.

use std::path::{Path, PathBuf};

use test_common::{Detail, LowerGuard, Setup, Snapshot, mode, put};

use crate::mount::Mount;
use crate::run;
use crate::unprivileged::VARIABLE;

/// A mount, and an ordinary directory with the same contents.
pub struct Differential {
    mount: Option<Mount>,
    guard: LowerGuard,
    front_end: String,
    /// The lower layers, the topmost first.
    lowers: Vec<PathBuf>,
    upper: PathBuf,
    /// The work directory, if it is not in the upper layer.
    work: Option<PathBuf>,
    pub setup: Setup,
}

impl Differential {
    /// Makes a fixture with one directory, `below`, in the lower layer.
    pub fn small(front_end: &str) -> Self {
        let setup = Setup::new();
        let lower = setup.dir("lower");
        put::file(&lower, "below/file", "two names");
        put::link(&lower, "below/file", "below/link");
        put::symlink(&lower, "below/symlink", "file");
        Self::over(front_end, setup, vec![lower])
    }

    /// Makes a fixture with the contents of these layers. None of them hides a directory.
    pub fn over(front_end: &str, setup: Setup, lowers: Vec<PathBuf>) -> Self {
        // Other users need access to it.
        mode(setup.root(), 0o755);
        let plain = setup.dir("plain");
        for layer in lowers.iter().rev() {
            // Some programs treat times in the same second as equal, so the times are in the past.
            shell(layer, "find . -newermt yesterday -exec touch -hd 2009-09-09 {} +");
            shell(layer, &format!("cp -a . {}", plain.display()));
        }
        let guard = LowerGuard::new(&lowers);
        let upper = setup.dir("upper");
        let mut differential =
            Self { mount: None, guard, front_end: front_end.to_owned(), lowers, upper, work: None, setup };
        differential.start();
        differential
    }

    fn start(&mut self) {
        let lowers: Vec<_> = self.lowers.iter().map(|lower| lower.to_str().unwrap()).collect();
        let (lowers, upper) = (lowers.join(":"), self.upper.display());
        let mut options = format!("door={},lowerdir={lowers},upperdir={upper}", self.front_end);
        if let Some(work) = &self.work {
            options += &format!(",workdir={}", work.display());
        }
        self.mount = Some(Mount::new(&self.setup.dir("mount"), &options));
    }

    /// Runs a script in both. Returns its output, which must be the same.
    pub fn run(&self, script: &str) -> String {
        let [found, expected] = ["mount", "plain"].map(|name| shell(&self.setup.path(name), script));
        let unlike = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
        assert!(found == expected, "{script}\nprints {found}\ninstead of {expected}\nFirst difference: {unlike:?}");
        found
    }

    /// Panics unless a part of the mount equals that of the ordinary directory.
    pub fn compare(&self, path: &str, detail: Detail) {
        let [found, expected] =
            ["mount", "plain"].map(|name| Snapshot::take(&self.setup.path(name).join(path), detail));
        assert!(found.count() > 1, "{path} is empty, so the comparison would mean nothing");
        expected.assert_same(&found, &format!("the mount's /{path}"));
    }

    /// Mounts again. The tree must be unchanged, with its times, and the lower layers too.
    pub fn remount(&mut self) {
        self.remount_after(|_| ());
    }

    /// Mounts again with an empty upper layer. The former upper layer becomes the topmost lower
    /// one.
    pub fn stack(&mut self) {
        self.remount_after(|differential| {
            let [upper, work] =
                ["upper", "work"].map(|name| differential.setup.dir(&format!("{name}-{}", differential.lowers.len())));
            // The root shows the times of the upper layer. That layer stays empty, as the work
            // directory is elsewhere.
            shell(&upper, &format!("touch -r {} .", differential.upper.display()));
            differential.work = Some(work);
            let below = std::mem::replace(&mut differential.upper, upper);
            differential.guard.add(&below);
            differential.lowers.insert(0, below);
        });
    }

    fn remount_after(&mut self, change: impl Fn(&mut Self)) {
        let point = self.setup.path("mount");
        let before = Snapshot::take(&point, Detail::Times);
        self.mount.take().unwrap().unmount();
        self.guard.check();
        change(self);
        self.start();
        before.assert_same(&Snapshot::take(&point, Detail::Times), "the tree after another mount");
    }

    /// Compares and remounts at the end of a test.
    pub fn end(mut self) {
        self.compare("", Detail::Contents);
        self.remount();
        self.compare("", Detail::Contents);
        self.mount.take().unwrap().unmount();
        self.guard.check();
    }
}

/// Runs a script in a directory. Returns its output.
fn shell(dir: &Path, script: &str) -> String {
    let mut command = run::command("sh");
    command.args(["-euc", script]).current_dir(dir);
    // The word before a command that only root of the system may run.
    command.env("AS_ROOT", if std::env::var_os(VARIABLE).is_some() { ":" } else { "" });
    // The scripts use no configuration of the user, and their commits are the same at any time.
    command.env("HOME", "/nonexistent").env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    for who in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{who}_NAME"), "Somebody").env(format!("GIT_{who}_EMAIL"), "somebody@example.org");
        command.env(format!("GIT_{who}_DATE"), "2001-02-03T04:05:06Z");
    }
    let output = run::finish(&mut command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "in {}: {script}\nfails with {}\n{err}{out}", dir.display(), output.status);
    out.into_owned()
}
