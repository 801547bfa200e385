//! The option lists of the manual pages, and the completions for shells, must match the tables of
//! [`overlayfs::usage`]. `scripts/pages` writes them. Commands that the pages print must run, and
//! messages that they quote must exist.

mod manual;
mod shell;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use overlayfs::usage::{self, Program};

/// Each program and its manual page.
const PROGRAMS: [(&Program, &str); 4] = [
    (&usage::overlayfs::PROGRAM, "man/overlayfs.8"),
    (&usage::fsck::PROGRAM, "man/overlayfs-fsck.8"),
    (&usage::layer::PROGRAM, "man/overlayfs-layer.8"),
    (&overlayfs_fuse::usage::PROGRAM, "overlayfs-fuse/overlayfs-fuse.1"),
];

/// Returns every generated file with its expected contents.
fn pages() -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for (program, page) in PROGRAMS {
        pages.push((page.to_owned(), manual::with_options(&fs::read_to_string(at(page)).unwrap(), program)));
        let name = program.name;
        pages.push((format!("completions/{name}.bash"), shell::bash(program)));
        pages.push((format!("completions/_{name}"), shell::zsh(program)));
        pages.push((format!("completions/{name}.fish"), shell::fish(program)));
    }
    pages
}

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn pages_match_the_tables() {
    let write = std::env::var_os("WRITE_PAGES").is_some();
    for (path, page) in pages() {
        if write {
            fs::write(at(&path), page).unwrap();
        } else {
            assert!(fs::read_to_string(at(&path)).ok() == Some(page), "{path} is out of date: run scripts/pages");
        }
    }
}

/// Returns the completions of bash for the last word of a command line. bash splits words at `=`
/// and `:` too, and gives the function these parts.
fn offered(line: &str) -> Vec<String> {
    let program = line.split(' ').next().unwrap();
    let function = program.replace('-', "_");
    let script = format!(
        "compopt() {{ :; }}; . completions/{program}.bash
        COMP_LINE=$1 COMP_POINT=${{#1}} COMP_WORDS=(\"${{@:2}}\") COMP_CWORD=$(($# - 2))
        _{function}
        printf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let words = line.split_inclusive([' ', '=', ':']).flat_map(|part| match part.split_at(part.len().max(1) - 1) {
        (word, " ") => vec![word],
        (word, mark @ ("=" | ":")) => vec![word, mark],
        _ => vec![part],
    });
    let last = if line.ends_with(' ') { Some("") } else { None };
    let bash = Command::new("bash")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["-uc", &script, "bash", line])
        .args(words.chain(last))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&bash.stderr), "");
    String::from_utf8(bash.stdout).unwrap().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_options_and_their_values() {
    assert_eq!(offered("overlayfs --re"), ["--read-only", "--reuse-volatile", "--replace"]);
    assert_eq!(offered("overlayfs --lower tests/pag"), ["tests/pages/"]);
    assert_eq!(offered("overlayfs-fsck -").len(), 10);
    assert_eq!(offered("overlayfs-layer dif"), ["diff"]);
    assert_eq!(offered("overlayfs-layer diff --upper tests/pag"), ["tests/pages/"]);
    assert_eq!(offered("overlayfs-layer diff --fr"), ["--from"]);
    assert_eq!(offered("overlayfs-fuse syn"), ["sync"]);
    assert_eq!(offered("overlayfs-fuse tests/pag"), ["tests/pages/"]);
    assert_eq!(offered("overlayfs-fuse sync tests/pag"), ["tests/pages/"]);
    assert_eq!(offered("overlayfs-fuse -o upper"), ["upperdir="]);
    assert_eq!(offered("overlayfs-fuse -o lowerdir=/a:/b,noac"), ["/b,noacl"]);
    assert_eq!(offered("overlayfs-fuse -o lowerdir=tests/pag"), ["tests/pages/"]);
    assert_eq!(offered("overlayfs-fuse -o lowerdir=/a:tests/pag"), ["tests/pages/"]);
    assert_eq!(offered("overlayfs-fuse -o ro,format="), ["oci", "kernel"]);
    assert_eq!(offered("overlayfs-fuse -o ro tests/pag"), ["tests/pages/"]);
}

#[test]
fn the_printed_check_of_an_upper_directory_runs() {
    let troubles = fs::read_to_string(at("docs/troubleshooting.md")).unwrap();
    let troubles = troubles.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let manual = fs::read_to_string(at("man/overlayfs-fsck.8")).unwrap();
    let manual = manual.split(".Bd -literal -offset indent\n").nth(1).unwrap().split(".Ed").next().unwrap();
    let home = tempfile::tempdir().unwrap();
    let bin = Path::new(env!("CARGO_BIN_EXE_overlayfs-fsck")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for example in [troubles, manual] {
        let mut shell = Command::new("sh");
        let output = shell.args(["-ec", example]).env("HOME", home.path()).env("PATH", &path).output().unwrap();
        assert!(output.status.success(), "{example}{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).ends_with(" has no damage.\n"), "{output:?}");
    }
}

/// Returns the contents of all Rust files below `dir` as one text.
fn sources(dir: &Path) -> String {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: PathBuf| match path.is_dir() {
        true => sources(&path),
        false => fs::read_to_string(&path).unwrap(),
    };
    entries.map(text).collect()
}

#[test]
fn messages_quoted_in_pages_exist() {
    let code = sources(&at("src")) + &sources(&at("overlayfs-fuse/src"));
    let page = fs::read_to_string(at("docs/troubleshooting.md")).unwrap();
    let (_, table) = page.split_once("| the message says | what to do |\n").unwrap();
    let rows: Vec<_> = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 10);
    for row in rows {
        let said = row.split('|').nth(1).unwrap();
        for words in said.split('`').skip(1).step_by(2) {
            assert!(code.contains(words), "no message has the words: {words}");
        }
    }
}

/// Returns the files of a folder with one of these extensions.
fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let files = fs::read_dir(at(folder)).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|found| extensions.iter().any(|wanted| found == *wanted)))
        .collect()
}

/// Returns all pages in Markdown.
fn documents() -> Vec<PathBuf> {
    [".", "docs", "redox"].iter().flat_map(|folder| files(folder, &["md"])).collect()
}

#[test]
fn lines_of_pages_have_at_most_120_columns() {
    let manuals = ["man", "overlayfs-fuse"].iter().flat_map(|folder| files(folder, &["1", "8"]));
    let pages: Vec<_> = documents().into_iter().chain(manuals).collect();
    assert!(pages.len() > 20);
    for page in pages {
        for (number, line) in fs::read_to_string(&page).unwrap().lines().enumerate() {
            // A row of a table cannot be broken.
            let wide = line.chars().count() > 120 && !line.starts_with('|');
            assert!(!wide, "{}:{} is wider than 120 columns", page.display(), number + 1);
        }
    }
}

#[test]
fn links_between_pages_have_a_target() {
    let mut count = 0;
    for page in documents() {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let path = link.split('#').next().unwrap();
            if !link.contains("://") && !path.is_empty() {
                assert!(page.parent().unwrap().join(path).exists(), "{} links to {link}", page.display());
                count += 1;
            }
        }
    }
    assert!(count > 10);
}
