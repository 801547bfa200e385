//! The life of an upper layer: random work and the subcommands of `overlayfs-layer` in any order.
//! After each the mount shows what it showed before, and there is no damage.
//!
//! Needs root.

#[path = "../layer_commit/case.rs"]
mod case;
#[path = "../layer_commit/tree.rs"]
mod tree;
#[path = "../layer_commit/work.rs"]
mod work;

use std::path::PathBuf;

use overlayfs::format::Wanted;
use test_common::{Random, exists};

use case::{Case, mount, outcome, seeds};
use tree::assert_same;
use work::work;

const PROGRAM: &str = env!("CARGO_BIN_EXE_overlayfs-layer");
const FSCK: &str = env!("CARGO_BIN_EXE_overlayfs-fsck");
/// The exit status of a subcommand that refuses the work.
const REFUSED: i32 = 3;

/// The steps that change the layers and not the tree.
const STEPS: [&str; 9] = ["vacuum", "convert", "deref", "choose", "commit", "atomic", "into", "flatten", "ship"];

/// Runs a program with these words, the layers and the work directory.
fn with_work(case: &Case, program: &str, words: &[&str]) -> (i32, String, String) {
    let mut command = case.command(program, words);
    command.arg("--work").arg(case.setup.path("work"));
    outcome(command)
}

/// Runs a subcommand. Returns what it printed, or None if it refuses the work.
fn run(case: &Case, what: &str, words: &[&str]) -> Option<String> {
    let (code, out, said) = with_work(case, PROGRAM, words);
    assert!(code == 0 || code == REFUSED, "{what}: {code}, {said}");
    (code == 0).then_some(out)
}

/// Does a step. Returns whether it was done, and not refused.
fn step(case: &mut Case, step: &str, number: usize, random: &mut Random, what: &str) -> bool {
    let new = case.setup.path(&format!("new{number}"));
    let path = new.to_str().unwrap();
    let done = match step {
        "vacuum" => run(case, what, &["vacuum"]),
        "convert" => run(case, what, &["convert", "--to", random.one_of(&["oci", "kernel"])]),
        "deref" => run(case, what, &["convert", "--deref"]),
        "choose" => {
            let globs = ["a", "*/b", "**/c", "**/[de]", "b/**", "*/*/a"];
            run(case, what, &["commit", random.one_of(&["--include", "--exclude"]), random.one_of(&globs)])
        }
        "commit" => run(case, what, &["commit"]),
        "atomic" => run(case, what, &["commit", "--atomic"]),
        "into" => run(case, what, &["commit", "--into", path]),
        "flatten" => run(case, what, &["flatten", "--into", path]),
        _ => run(case, what, &["export", "--format", "tar", path]),
    };
    if done.is_none() {
        return false;
    }
    let lowers: Vec<PathBuf> = match step {
        "into" => [&[new][..], &case.lowers[1..]].concat(),
        "flatten" => vec![new],
        "ship" => {
            let mut import = std::process::Command::new(PROGRAM);
            import.arg("import").arg(&new).arg(case.setup.dir(&format!("imported{number}")));
            let (code, out, said) = outcome(import);
            assert_eq!(code, 0, "{what}: {said}");
            let imported = PathBuf::from(out.lines().next().unwrap());
            [&[imported][..], &case.lowers].concat()
        }
        _ => return true,
    };
    // These have the changes of the upper layer. The root of the emptied one is as theirs.
    case.lowers = lowers;
    assert!(run(case, what, &["discard"]).is_some(), "{what}: a discard was refused");
    true
}

#[test]
fn each_step_of_a_layers_life_shows_the_same_tree() {
    let mut counts = std::collections::BTreeMap::<&str, (u64, u64)>::new();
    for seed in seeds(0) {
        let mut random = Random(seed);
        let formats = [Wanted::Oci, Wanted::Kernel];
        let mut case = Case::new(seed, 1 + seed as usize % 2, &formats, *random.one_of(&formats), 40);
        let mut history = Vec::new();
        for number in 0..12 {
            work(&mount(&case.options()), &mut random, 15);
            let mut before = case.shown();
            let name = *random.one_of(&STEPS);
            history.push(name);
            let what = format!("seed {seed}, {history:?}");
            let done = step(&mut case, name, number, &mut random, &what);
            let (tried, refused) = counts.entry(name).or_default();
            (*tried, *refused) = (*tried + 1, *refused + u64::from(!done));
            let after = case.shown();
            if name == "ship" {
                // An archive cannot have a socket. What a socket hides stays hidden.
                before.retain(|path, text| after.contains_key(path) || !text.starts_with("Socket"));
            }
            assert_same(&before, &after, &what);
            let (code, found, said) = with_work(&case, FSCK, &["-n"]);
            assert_eq!(code, 0, "{what}: {found}{said}");
            assert!(!exists(&case.setup.path("work/commit")), "{what}: a journal is left");
        }
    }
    println!("step: (tried, refused): {counts:?}");
    assert!(counts.values().all(|(tried, refused)| refused < tried), "a step was always refused: {counts:?}");
}
