//! The examples of the manual, of README and of the pages in docs run as they are printed. Each
//! runs in a mount namespace of its own, with the paths that it names. An example without a test is
//! a failure. All blocks of `sh` in a page run in one shell, in order.
//!
//! Needs root, /dev/fuse, and of Debian's packages fuse3, fuse-overlayfs, util-linux and podman.

#[path = "suite/run.rs"]
mod run;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::{Path, PathBuf};

use test_common::{Setup, exists, put};

/// The manual page, and README.
const MANUAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/overlayfs-fuse.1");
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

/// Returns the path of the program under test.
fn program() -> String {
    std::env::var("OVERLAYFS_FUSE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_overlayfs-fuse").to_owned())
}

/// Returns the examples of the manual.
fn of_manual() -> Vec<String> {
    blocks_of_manual("indent")
}

/// Returns what the manual says that its examples print.
fn output_in_manual() -> Vec<String> {
    blocks_of_manual("indent-two")
}

fn blocks_of_manual(offset: &str) -> Vec<String> {
    let page = fs::read_to_string(MANUAL).unwrap();
    let (_, section) = page.split_once(".Sh EXAMPLES\n").unwrap();
    let (section, _) = section.split_once(".Sh ").unwrap();
    let begin = format!(".Bd -literal -offset {offset}\n");
    let blocks = section.split(&begin).skip(1);
    let text = |block: &str| block.split_once(".Ed\n").unwrap().0.replace("\\-", "-");
    blocks.map(text).collect()
}

/// Returns the examples of README for the mount on Linux.
fn of_readme() -> Vec<String> {
    let page = fs::read_to_string(README).unwrap();
    let (_, section) = page.split_once("## Mount it on Linux\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    section.split("```\n").skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the blocks of `language` in a page of docs.
fn of_page(page: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(DOCS).join(page)).unwrap();
    let begin = format!("\n```{language}\n");
    text.split(&begin).skip(1).map(|block| block.split_once("```\n").unwrap().0.to_owned()).collect()
}

/// Returns the only example that contains `word`.
fn one(examples: &[String], word: &str) -> String {
    let found: Vec<_> = examples.iter().filter(|example| example.contains(word)).collect();
    assert_eq!(found.len(), 1, "examples with {word}");
    found[0].clone()
}

/// Returns an example with `check` before the line that begins with `end`.
fn checked(example: &str, check: &str, end: &str) -> String {
    let at = example.find(&format!("\n{end}")).unwrap_or_else(|| panic!("no line of {example:?} begins with {end}"));
    format!("{}\n{check}{}", &example[..at], &example[at..])
}

/// The place where examples run: with the program in PATH, and a home directory.
struct Bench {
    setup: Setup,
}

impl Bench {
    fn new() -> Self {
        let setup = Setup::new();
        setup.dir("home");
        symlink(program(), setup.dir("bin").join("overlayfs-fuse")).unwrap();
        // The examples build with this `cargo`, which does nothing. The programs are there already.
        symlink("/bin/true", setup.dir("bin").join("cargo")).unwrap();
        symlink(program(), put::dir(setup.root(), "target/release").join("overlayfs-fuse")).unwrap();
        Self { setup }
    }

    /// Runs a shell script in namespaces of its own, with `input` as its standard input. The script
    /// must succeed. No daemon outlives it. Returns its standard output.
    fn run(&self, script: &str, input: &str) -> String {
        let path = format!("{}:{}", self.setup.path("bin").display(), std::env::var("PATH").unwrap());
        let mut command = run::command("unshare");
        command.args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", "-e", "-c", script]);
        command.current_dir(self.setup.root()).env("PATH", path).env("HOME", self.setup.path("home"));
        let answers = put::file(self.setup.root(), "input", input);
        let output = run::finish(command.env("SHELL", "/bin/sh").stdin(File::open(answers).unwrap()));
        assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn home(&self, name: &str) -> PathBuf {
        self.setup.path("home").join(name)
    }
}

/// Puts the program at its path in the examples of system files, with nothing else there.
const INSTALLED: &str = r#"
    found=$(readlink -f "$(command -v overlayfs-fuse)")
    cp "$found" "$HOME/program"
    mount -t tmpfs tmpfs /usr/local/bin
    cp "$HOME/program" /usr/local/bin/overlayfs-fuse
"#;

/// Gives an example a /var of its own. Two examples use /var/try, and tests run at once.
const OWN_VAR: &str = "mount -t tmpfs tmpfs /var; mkdir -m 1777 /var/tmp\n";

#[test]
fn all_examples_are_known() {
    assert_eq!((of_manual().len(), of_readme().len()), (6, 2), "an example has come or gone: run it here");
}

#[test]
fn changes_of_ones_own() {
    let check = r#"
        test -d "$HOME/merged/doc"
        echo changed > "$HOME/merged/of-my-own"
    "#;
    for (example, end) in
        [(one(&of_manual(), "fusermount3"), "fusermount3"), (one(&of_readme(), "target/release"), "umount")]
    {
        let bench = Bench::new();
        bench.run(&checked(&example, check, end), "");
        assert_eq!(fs::read_to_string(bench.home("changes/of-my-own")).unwrap(), "changed\n");
        assert!(!exists(&bench.home("merged/of-my-own")), "it is unmounted");
    }
}

#[test]
fn examples_print_what_the_manual_says() {
    for (word, printed) in [("run --discard", "discarded"), ("rollback", "partial_copies")] {
        let bench = Bench::new();
        let output = bench.run(&format!("exec 2>&1\n{}", one(&of_manual(), word)), "");
        let home = bench.setup.path("home");
        assert_eq!(output.replace(home.to_str().unwrap(), "/home/me"), one(&output_in_manual(), printed));
    }
}

#[test]
fn a_sandbox_of_the_whole_system() {
    let bench = Bench::new();
    let name = format!("/etc/overlayfs-test-{}", std::process::id());
    let tried = format!(
        "echo x > /dev/null && test -c /dev/null && test -r /proc/self/status && test -d /sys/kernel && echo x > {name} && exit 0\nexit 1\n"
    );
    let example = one(&of_manual(), "chroot");
    bench.run(&format!("{OWN_VAR}{example}\ntest ! -e /var/try"), &tried);
    assert!(!exists(Path::new(&name)), "it leaves no trace");
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

/// The pages, each with its number of `sh` blocks.
const PAGES: [(&str, usize); 3] = [("from-fuse-overlayfs.md", 2), ("containers.md", 2), ("sandboxes.md", 6)];

#[test]
fn the_pages() {
    for (page, count) in PAGES {
        let blocks = of_page(page, "sh");
        assert_eq!(blocks.len(), count, "{page}: a block has come or gone");
        // The block about podman's storage needs system files, and another test runs it.
        let blocks: String = blocks.into_iter().filter(|block| !block.contains("podman info")).collect();
        let bench = Bench::new();
        bench.run(&format!("{OWN_VAR}{blocks}"), "");
        println!("{page}: {count} blocks");
    }
}

#[test]
fn an_entry_of_fstab() {
    let bench = Bench::new();
    let table = bench.home("fstab");
    fs::write(&table, one(&of_manual(), "nofail")).unwrap();
    let script = format!(
        "{INSTALLED}
        mount -t tmpfs tmpfs /srv
        mkdir /srv/base /srv/changes /srv/data
        echo base > /srv/base/file
        mount --fstab {} /srv/data
        grep -q base /srv/data/file
        echo changed > /srv/data/file
        umount /srv/data
        grep -q changed /srv/changes/file",
        table.display()
    );
    bench.run(&script, "");
}

#[test]
fn by_the_program_mount() {
    let example = one(&of_readme(), "mount -t fuse");
    let script = format!(
        "{INSTALLED}
        mount -t tmpfs tmpfs /home
        mkdir -p /home/user/changes /home/user/merged
        {example}
        test -d /home/user/merged/doc
        echo changed > /home/user/merged/of-my-own
        umount /home/user/merged
        grep -q changed /home/user/changes/of-my-own"
    );
    Bench::new().run(&script, "");
}

/// Tests the mount helper of this project in place of the one of the package fuse3.
#[test]
fn by_the_helper_of_mount() {
    let helper = concat!(env!("CARGO_MANIFEST_DIR"), "/mount.fuse.overlayfs-fuse");
    let script = format!(
        "{INSTALLED}
        mkdir $HOME/own
        mount -t tmpfs tmpfs $HOME/own
        mkdir $HOME/own/changes $HOME/own/work
        mount -t overlay -o lowerdir=/usr/sbin,upperdir=$HOME/own/changes,workdir=$HOME/own/work overlay /usr/sbin
        rm -f /usr/sbin/mount.fuse*
        cp {helper} /usr/sbin/
        mkdir $HOME/lower $HOME/upper $HOME/merged
        echo base > $HOME/lower/file
        mount='mount -t fuse.overlayfs-fuse'
        $mount -f -o lowerdir=$HOME/lower overlay $HOME/merged
        test ! -e $HOME/merged/file
        $mount -v -o lowerdir=$HOME/lower,upperdir=$HOME/upper,nosuid 'a name' $HOME/merged
        grep -q base $HOME/merged/file
        grep -q '^a.040name ' /proc/self/mounts
        mount -o remount,ro $HOME/merged
        test ! -w $HOME/merged/file || ! echo changed > $HOME/merged/file
        umount $HOME/merged
        if $mount -o lowerdir=$HOME/none overlay $HOME/merged 2> $HOME/said; then exit 1; fi
        grep -q 'cannot open the lower layer' $HOME/said"
    );
    Bench::new().run(&script, "");
}

#[test]
fn the_storage_of_podman() {
    let page = of_page("containers.md", "toml");
    assert_eq!(page.len(), 2, "an example has come or gone: run it here");
    for example in [one(&of_manual(), "[storage]"), page[0].clone(), page.concat()] {
        let bench = Bench::new();
        let home = bench.setup.path("home");
        let places = format!("[storage]\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"", home.display());
        fs::write(home.join("storage.conf"), example.replacen("[storage]", &places, 1)).unwrap();
        let script = format!(
            "{INSTALLED}
            export CONTAINERS_STORAGE_CONF=$HOME/storage.conf
            podman info --format '{{{{.Store.GraphDriverName}}}} {{{{.Store.GraphOptions}}}}' > $HOME/said
            grep -q '^overlay .*/usr/local/bin/overlayfs-fuse' $HOME/said"
        );
        bench.run(&script, "");
    }
}
