//! The POSIX suite `pjdfstest` from crates.io on a mount. pjdfstest-expected.txt lists the cases
//! that may fail, for both front ends.
//!
//! Needs root, /dev/fuse, Debian's users nobody, daemon and bin, and `pjdfstest` in PATH or in
//! target/tools/bin; fails without them.

#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/tool.rs"]
mod tool;
#[path = "suite/unprivileged.rs"]
mod unprivileged;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::path::Path;

use fixture::Fixture;
use mount::{eventually, is_mounted};
use test_common::{Setup, put};

const EXPECTED: &str = include_str!("pjdfstest-expected.txt");

/// Remounts are not allowed. The kernel of the host alone answers EROFS for a read-only mount,
/// without a request to the daemon.
const CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
"#;

/// The least number of cases. Fewer mean that the suite or its configuration has changed.
const CASES: usize = 380;

/// Returns whether a case cannot run: the cases with a remount, and the case of the largest link
/// count, which FUSE does not report.
fn is_untried(case: &str) -> bool {
    let name = case.rsplit("::").next().unwrap();
    ["erofs_named", "erofs_new_file", "link_count_max"].contains(&name)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Reads the outcome of each case from lines of a name and a word. Other lines are messages.
fn outcomes(report: &str) -> BTreeMap<&str, Outcome> {
    let outcome = |line| {
        let (name, word) = str::trim_end(line).split_once(' ')?;
        let outcome = match word.trim_start() {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            "skipped" => Outcome::Skipped,
            _ => return None,
        };
        name.contains("::").then_some((name, outcome))
    };
    report.lines().filter_map(outcome).collect()
}

/// Returns the names of the expected failures. Each line has a reason.
fn expected() -> BTreeSet<String> {
    let lines = EXPECTED.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let name = |line: &str| line.split_once(' ').map(|(name, _)| name.to_owned());
    lines.map(|line| name(line).unwrap_or_else(|| panic!("{line} is expected to fail without a reason"))).collect()
}

/// Returns the report of the suite on a directory.
fn report(setup: &Setup, point: &Path) -> String {
    let config = put::file(setup.root(), "pjdfstest.toml", CONFIG);
    let mut command = run::command(tool::tool("pjdfstest", "0.2.2"));
    command.arg("-c").arg(config).arg("-p").arg(point).arg("-s").arg(setup.dir("elsewhere")).current_dir(point);
    let output = run::finish(&mut command);
    let report = String::from_utf8(output.stdout).unwrap();
    let outcomes = outcomes(&report);
    let count = |outcome| outcomes.values().filter(|is| **is == outcome).count();
    let summary = format!(
        "Summary: {} failed, {} skipped, {} passed, 0 expected failures, {} total",
        count(Outcome::Failed),
        count(Outcome::Skipped),
        count(Outcome::Passed),
        outcomes.len()
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(report.contains(&summary), "the report was not understood as {summary}:\n{report}{errors}");
    let tried = outcomes.len() - count(Outcome::Skipped);
    assert!(tried >= CASES, "only {tried} cases were tried, not {CASES}");
    report
}

/// Returns the names of the cases with this outcome.
fn with(report: &str, outcome: Outcome) -> BTreeSet<String> {
    outcomes(report).into_iter().filter(|(_, is)| *is == outcome).map(|(name, _)| name.to_owned()).collect()
}

fn pjdfstest(front_end: &str) {
    let fixture = Fixture::new();
    let (setup, point) = (&fixture.setup, fixture.point());
    put::file(&fixture.path("lower"), "file", "data");
    let guard = fixture.guard();
    // The kernel forbids some calls to an unprivileged user. So the expected failures of that user
    // are those on an ordinary directory.
    let unprivileged = env::var_os(unprivileged::VARIABLE).is_some();
    let (expected, may_be_skipped) = if unprivileged {
        let plain = report(setup, &setup.dir("plain"));
        (with(&plain, Outcome::Failed), with(&plain, Outcome::Skipped))
    } else {
        (expected(), BTreeSet::new())
    };

    let mount = fixture.mount(&format!(",door={front_end}"));
    let report = report(setup, &point);
    let failed = with(&report, Outcome::Failed);
    let unexpected: Vec<_> = failed.difference(&expected).collect();
    assert!(unexpected.is_empty(), "these cases fail: {unexpected:#?}\n{report}");
    // A case that needs another filesystem also fails on an ordinary directory.
    let passing: Vec<_> = expected.difference(&failed).filter(|_| !unprivileged).collect();
    assert!(passing.is_empty(), "these cases are expected to fail and do not, so take them off the list: {passing:#?}");
    let mut skipped = with(&report, Outcome::Skipped);
    skipped.retain(|case| !is_untried(case) && !may_be_skipped.contains(case));
    assert!(skipped.is_empty(), "these cases were skipped: {skipped:#?}\n{report}");

    mount.unmount();
    eventually("nothing is mounted any more", || !is_mounted(&point));
    guard.check();
}

through_both_front_ends! { pjdfstest }

#[test]
fn as_an_unprivileged_user() {
    unprivileged::again(&["engine::pjdfstest", "scheme::pjdfstest"], &[], &[&tool::tool("pjdfstest", "0.2.2")]);
}
