//! Ordinary programs in a mount, most of them over copies of /usr/include and /usr/share/doc.
//!
//! Every script runs twice, in the mount and in an ordinary directory with the same tree. Both must
//! print the same and leave the same tree, also after another mount. The lower layers must not
//! change.
//!
//! Needs root, /dev/fuse, cargo, npm with its registry, and of Debian's packages acl, attr, git,
//! libcap2-bin and rsync; fails without them.

#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/differential.rs"]
mod differential;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;
#[path = "suite/unprivileged.rs"]
mod unprivileged;

use std::fs;
use std::path::Path;

use differential::Differential;
use test_common::{Detail, Setup, names, put};

/// The approximate number of objects that are copied from each directory of the host.
const OBJECTS: usize = 160;

/// The limit of the size of a copied file, in bytes: /usr/share/doc of a host may have huge files.
const LARGEST: u64 = 1 << 17;

/// Makes a fixture with two lower layers: the upper one has a part of /usr/include, the other one a
/// part of /usr/share/doc. The other one also has an object for each name in the first one's
/// directory. It merges with a directory, and a file hides it.
fn of_the_host(front_end: &str) -> Differential {
    let setup = Setup::new();
    let [top, bottom] = ["top", "bottom"].map(|name| setup.dir(name));
    copy_part(Path::new("/usr/include"), &put::dir(&top, "include"));
    copy_part(Path::new("/usr/share/doc"), &put::dir(&bottom, "doc"));
    for name in names(&top.join("include")) {
        match fs::symlink_metadata(top.join("include").join(&name)).unwrap().is_dir() {
            true => put::file(&bottom, &format!("include/{name}/below"), "merged"),
            false => put::file(&bottom, &format!("include/{name}"), "hidden"),
        };
    }
    put::file(&bottom, "below/file", "two names");
    put::link(&bottom, "below/file", "below/link");
    put::symlink(&bottom, "below/symlink", "../include");
    Differential::over(front_end, setup, vec![top, bottom])
}

/// Copies the first objects of a directory, whole files and directories. The copies belong to this
/// user.
fn copy_part(from: &Path, to: &Path) {
    let mut left = OBJECTS;
    copy_some(from, to, &mut left);
    let copied = OBJECTS - left;
    assert!(copied >= 100, "{} has too little in it to be a test: {copied} objects were copied", from.display());
}

/// Copies until `left`, the number of objects, is 0. A directory gets at most half of the number
/// that its parent has left.
fn copy_some(from: &Path, to: &Path, left: &mut usize) {
    let mut files = Vec::new();
    for name in names(from) {
        if *left == 0 {
            break;
        }
        let (source, target) = (from.join(&name), to.join(&name));
        let metadata = fs::symlink_metadata(&source).unwrap();
        if metadata.is_dir() {
            fs::create_dir(&target).unwrap();
            let share = *left / 2;
            let mut rest = share;
            copy_some(&source, &target, &mut rest);
            *left -= 1 + share - rest;
        } else if metadata.len() <= LARGEST {
            files.push(source);
            *left -= 1;
        }
    }
    if !files.is_empty() {
        let mut copy = run::command("cp");
        let keep = ["--no-dereference", "--preserve=mode,timestamps,links", "--target-directory"];
        assert!(run::finish(copy.args(keep).arg(to).args(files)).status.success());
    }
    let mut touch = run::command("touch");
    assert!(run::finish(touch.arg("-r").arg(from).arg(to)).status.success());
}

fn git(front_end: &str) {
    let mut differential = of_the_host(front_end);
    let said = differential.run(
        "git init -q -b main
        git config gc.auto 0; git config maintenance.auto false; git config pack.threads 1; git config pack.window 0
        git add .; git commit -qm 'All'
        git status --porcelain; git fsck --strict; git rev-parse HEAD; git ls-files -s | git hash-object --stdin
        set -- $(git ls-files include | sort); git mv $1 include/moved.h; echo '/* changed */' >> $2; rm $3; chmod +x $4; rm -r doc/[a-c]*
        git status --porcelain | grep -v '^ D'; git diff --stat | tail -1
        git add -A; git commit -qm 'Changes'; git rev-parse HEAD; git log --stat --oneline | tail -3
        git checkout -q HEAD~1; git status --porcelain; git checkout -q main; git status --porcelain
        git repack -adq; git fsck --strict; git stash list; git rev-parse HEAD~1 HEAD",
    );
    assert!(said.contains("include/moved.h"), "{said}");
    differential.remount();
    differential.run("git status --porcelain; git fsck --strict; git reset -q --hard HEAD~1; git status --porcelain; git rev-parse HEAD");
    // It has the times and inode numbers of the files.
    differential.run("rm .git/index");
    differential.end();
}

fn tar(front_end: &str) {
    let differential = of_the_host(front_end);
    differential.run("tar --sort=name -cf all.tar include doc below; sha256sum all.tar; tar -df all.tar");
    differential.run("mkdir restored; tar -xpf all.tar -C restored; touch -d 2001-01-01 restored");
    differential.compare("restored", Detail::Times);
    differential.run("tar -xpf all.tar; tar -df all.tar");
    differential.compare("include", Detail::Times);
    differential.compare("doc", Detail::Times);
    differential.run("rm -r include doc below; tar -xpf all.tar; tar -df all.tar; rm all.tar");
    differential.compare("include", Detail::Times);
    differential.end();
}

fn cargo_build(front_end: &str) {
    let mut differential = of_the_host(front_end);
    let package = differential.setup.dir("package");
    put::file(
        &package,
        "Cargo.toml",
        "[package]\nname = \"small\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    );
    put::file(
        &package,
        "build.rs",
        "use std::{env, fs};
        fn main() {
            fs::write(env::var(\"OUT_DIR\").unwrap() + \"/made.rs\", \"pub const MADE: &str = \\\"made by the build script\\\";\").unwrap();
            println!(\"cargo:rerun-if-changed=build.rs\");
        }",
    );
    put::file(
        &package,
        "src/lib.rs",
        "include!(concat!(env!(\"OUT_DIR\"), \"/made.rs\"));\n#[test]\nfn tested() { assert!(MADE.len() > 3); }\n",
    );
    put::file(&package, "src/main.rs", "fn main() { println!(\"{}\", small::MADE); }\n");

    // A program copies the package into the mount, and everything is built there. The output of
    // cargo has times.
    let (cargo, package) = (std::env::var("CARGO").unwrap(), package.display());
    let home = std::env::var("HOME").unwrap_or_default();
    let build = format!(
        "export HOME='{home}' CARGO_TARGET_DIR=$PWD/built; unset CARGO_BUILD_TARGET RUSTFLAGS || true
        cp -r '{package}' small; cd small; '{cargo}' build --offline --quiet; ../built/debug/small"
    );
    assert_eq!(differential.run(&build), "made by the build script\n");
    let again = format!(
        "export HOME='{home}' CARGO_TARGET_DIR=$PWD/built; cd small
        '{cargo}' build --offline 2>&1 | grep -c Compiling || true
        touch -d '+2 seconds' src/main.rs; '{cargo}' build --offline 2>&1 | grep -c Compiling
        '{cargo}' test --offline --quiet 2>&1 | grep -c 'test result: ok. 1 passed'; ../built/debug/small"
    );
    differential.remount();
    assert_eq!(
        differential.run(&again),
        "0\n1\n1\nmade by the build script\n",
        "a second build compiles only the changed file"
    );
    // Programs and metadata contain the paths of the two directories.
    differential.run("rm -r built");
    differential.end();
}

fn find_and_copies(front_end: &str) {
    let differential = of_the_host(front_end);
    // Without inode numbers, blocks, and the sizes and link counts of directories, which depend on
    // the filesystem.
    let listed = differential
        .run("find . -mindepth 1 -ls | awk '{ $1 = $2 = \"\"; if ($3 ~ /^d/) $4 = $7 = \"\"; print }' | sort");
    assert!(listed.lines().count() > 150, "{listed}");
    differential.compare("", Detail::Contents);
    differential.run(
        "cp -a include copied; diff -r --no-dereference include copied
        cp -al doc linked; diff -r --no-dereference doc linked
        cp -a below copied-below; ls copied-below",
    );
    differential.compare("copied", Detail::Times);
    differential
        .run("cp -r below/symlink/. followed; find followed | sort; du -a --apparent-size --inodes followed | wc -l");
    differential.end();
}

fn removals_and_renames(front_end: &str) {
    let mut differential = of_the_host(front_end);
    differential.run(
        "echo file > include/moved-file; mv include moved
        mv $(find moved -mindepth 1 -maxdepth 1 -type d | sort | head -1) again
        mkdir include; ls -A include
        for file in $(find moved -name '*.h' -type f | sort | head -40); do sed -i 's/define/DEFINE/' $file; done
        find again doc | sort | sha256sum; chmod -R g+w doc; $AS_ROOT chown -R daemon:bin again
        ln moved/moved-file moved/third; find . -links +1 -type f | sort",
    );
    differential.remount();
    differential.run("mv again include/back; mv moved include/again; rm -r doc; mkdir doc; ls -A doc; echo new > doc/file; find . | sort");
    differential.remount();
    differential.run("rm -r include; ls -A; mkdir -p include/again; ls -AR include; rm -rf below doc; ls -A; mkdir below; ls -A below");
    differential.end();
}

/// With `-AX` rsync copies access control lists and extended attributes, through the front end that
/// has them.
fn rsync(front_end: &str) {
    let mut differential = of_the_host(front_end);
    let attributes = front_end == "engine";
    let all = if attributes { "rsync -aHAX --numeric-ids" } else { "rsync -aH --numeric-ids" };
    // The attributes of the objects: a line for each object that has some.
    let listing = if attributes { "getfattr -Rdhm - . | sort; getfacl -Rsnp . | sort" } else { "true" };
    if attributes {
        differential.run(
            "first=$(find include -type f | sort | head -1); setfattr -n user.note -v noted $first doc; setfacl -m u:0:rw $first
            setfacl -m d:g:0:rwx,g:0:r include; $AS_ROOT setfattr -hn trusted.note -v noted below/symlink; setcap cap_chown+p $(find doc -type f -links 1 | sort | tail -1)",
        );
    }
    differential.run(&format!(
        "mkfifo -m 640 below/fifo; $AS_ROOT mknod below/null c 1 3; truncate -s 3M below/sparse; echo end >> below/sparse
        mkdir copies; find below -newermt yesterday -exec touch -d 2010-10-10 {{}} +; {all} -S include doc below copies; {all} -nic --delete include doc below copies; {listing}; touch -d 2010-10-10 copies"
    ));
    differential.compare("copies", Detail::Times);
    differential.stack();
    differential.run(&format!(
        "for file in $(find include -name '*.h' -type f | sort | head -20); do echo '/* changed */' >> $file; touch -d 2011-11-11 $file; done
        rm -r $(find doc -mindepth 1 -maxdepth 1 | sort | head -5); mv include/$(ls include | tail -1) doc; chmod 700 below
        {all} -i --delete --inplace include doc below copies | sort; {all} -nic --delete include doc below copies; {listing}"
    ));
    differential.compare("copies", Detail::Contents);
    // A second rsync has nothing left to copy.
    differential.run("find . -type d -exec touch -d 2012-12-12 {} +");
    assert_eq!(differential.run(&format!("{all} -nic --delete ../plain/ ../mount/")), "");
    differential.end();
}

/// Through the scheme this would be slow, and would show nothing new.
#[test]
fn npm() {
    let mut differential = Differential::small("engine");
    let project = differential.setup.dir("project");
    put::file(&project, "package.json", include_str!("npm/package.json"));
    put::file(&project, "package-lock.json", include_str!("npm/package-lock.json"));
    put::file(&project, "test.js", include_str!("npm/test.js"));
    let cache = differential.setup.dir("cache");
    let npm = format!("npm --cache '{}' --no-audit --no-fund --no-update-notifier --prefer-offline", cache.display());
    let said = differential.run(&format!(
        "cp -r ../project .; cd project; {npm} ci | sed 's/ in .*//'; find . -type l -printf '%p -> %l\\n' | sort
        {npm} ls --all | sed 1d; {npm} test | grep passing | cut -d'(' -f 1"
    ));
    assert!(
        said.contains("added 141 packages") && said.contains("mocha@10.8.2") && said.contains("1 passing"),
        "{said}"
    );
    differential.compare("project/node_modules", Detail::Contents);
    differential.stack();
    // Removes everything and installs it again, then only a part.
    differential.run(&format!(
        "cd project; {npm} ci | sed 's/ in .*//'; {npm} test | grep passing | cut -d'(' -f 1; {npm} ls --all | sed 1d"
    ));
    differential.compare("project/node_modules", Detail::Contents);
    let said = differential.run(&format!(
        "cd project; {npm} prune --omit=dev | sed 's/ in .*//'; ls node_modules node_modules/.bin; {npm} ls --omit=dev --all | sed 1d"
    ));
    assert!(said.contains("removed 69 packages") && !said.contains("mocha"), "{said}");
    differential.end();
}

through_both_front_ends! { git, tar, cargo_build, find_and_copies, removals_and_renames, rsync }

#[test]
fn as_an_unprivileged_user() {
    unprivileged::again(&["engine::", "npm", "scheme::rsync", "scheme::removals"], &[], &[]);
}
