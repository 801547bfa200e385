//! Ordinary programs in a mount over copies of /usr/include and /usr/share/doc.
//!
//! Every script runs twice, in the mount and in an ordinary directory that holds the same tree: what it prints and what it leaves must be
//! the same in both, also after another mount, and the lower layers must be what they were.
//!
//! Needs root, /dev/fuse, cargo, npm with its registry, and of Debian's packages acl, attr, git, postgresql, rsync and sqlite3; fails
//! without them.

#[macro_use]
#[path = "suite/doors.rs"]
mod doors;
#[path = "suite/mount.rs"]
mod mount;
#[path = "suite/run.rs"]
mod run;

use std::fs;
use std::path::Path;

use mount::Mount;
use test_common::{Detail, LowerGuard, Snapshot, Stage, names, put};

/// How many objects of each of the host's directories are copied, about.
const OBJECTS: usize = 300;

/// Nothing bigger than this is copied, in bytes: what a host has in /usr/share/doc can be huge.
const LARGEST: u64 = 1 << 17;

/// A mount, and an ordinary directory with the same contents.
struct Twins {
    mount: Option<Mount>,
    guard: LowerGuard,
    stage: Stage,
    door: String,
}

impl Twins {
    /// The upper one of two lower layers has a part of /usr/include, the other one a part of /usr/share/doc, and something under
    /// each name in the first one's directory: it merges with a directory and is hidden by a file.
    fn new(door: &str) -> Self {
        let stage = Stage::new();
        let [top, bottom, plain] = ["top", "bottom", "plain"].map(|name| stage.dir(name));
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
        for layer in [&bottom, &top] {
            shell(layer, &format!("cp -a . {}", plain.display()));
        }
        let guard = LowerGuard::new([top, bottom]);
        let mut twins = Self { mount: None, guard, stage, door: door.to_owned() };
        twins.start();
        twins
    }

    fn start(&mut self) {
        let [top, bottom, upper, point] = ["top", "bottom", "upper", "mount"].map(|name| self.stage.dir(name));
        let (top, bottom, upper) = (top.display(), bottom.display(), upper.display());
        self.mount = Some(Mount::new(&point, &format!("door={},lowerdir={top}:{bottom},upperdir={upper}", self.door)));
    }

    /// Runs a script in both. Returns what it printed, which is the same.
    fn run(&self, script: &str) -> String {
        let [found, expected] = ["mount", "plain"].map(|name| shell(&self.stage.path(name), script));
        let unlike = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
        assert!(found == expected, "{script}\nprints {found}\ninstead of {expected}\nFirst difference: {unlike:?}");
        found
    }

    fn compare(&self, path: &str, detail: Detail) {
        let [found, expected] =
            ["mount", "plain"].map(|name| Snapshot::take(&self.stage.path(name).join(path), detail));
        assert!(found.count() > 1, "{path} is empty, so the comparison would mean nothing");
        expected.assert_same(&found, &format!("the mount's /{path}"));
    }

    /// Mounts anew: the tree is what it was, times included, and the lower layers as well.
    fn remount(&mut self) {
        let point = self.stage.path("mount");
        let before = Snapshot::take(&point, Detail::Times);
        self.mount.take().unwrap().unmount();
        self.guard.check();
        self.start();
        before.assert_same(&Snapshot::take(&point, Detail::Times), "the tree after another mount");
    }

    /// The last words of every test.
    fn end(mut self) {
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
    // Nothing of the user's own configuration, and the same commits at any time.
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

/// Copies the first objects of a directory, whole files and directories with all that is known of them.
fn copy_part(from: &Path, to: &Path) {
    let mut left = OBJECTS;
    copy_some(from, to, &mut left);
    let copied = OBJECTS - left;
    assert!(copied >= 100, "{} has too little in it to be a test: {copied} objects were copied", from.display());
}

/// Copies until nothing is `left` of the number of objects. A directory gets at most half of what its parent has left.
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
        assert!(run::finish(copy.arg("-at").arg(to).args(files)).status.success());
    }
    let mut touch = run::command("touch");
    assert!(run::finish(touch.arg("-r").arg(from).arg(to)).status.success());
}

fn git(door: &str) {
    let mut twins = Twins::new(door);
    let said = twins.run(
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
    twins.remount();
    twins.run("git status --porcelain; git fsck --strict; git reset -q --hard HEAD~1; git status --porcelain; git rev-parse HEAD");
    // It has the times and inode numbers of the files.
    twins.run("rm .git/index");
    twins.end();
}

fn tar(door: &str) {
    let twins = Twins::new(door);
    twins.run("tar --sort=name -cf all.tar include doc below; sha256sum all.tar; tar -df all.tar");
    twins.run("mkdir restored; tar -xpf all.tar -C restored; touch -d 2001-01-01 restored");
    twins.compare("restored", Detail::Times);
    twins.run("tar -xpf all.tar; tar -df all.tar");
    twins.compare("include", Detail::Times);
    twins.compare("doc", Detail::Times);
    twins.run("rm -r include doc below; tar -xpf all.tar; tar -df all.tar; rm all.tar");
    twins.compare("include", Detail::Times);
    twins.end();
}

fn cargo_build(door: &str) {
    let mut twins = Twins::new(door);
    let package = twins.stage.dir("package");
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

    // Into the mount by a program, and built there with everything that is built inside as well. What cargo says has times in it.
    let (cargo, package) = (env!("CARGO"), package.display());
    let home = std::env::var("HOME").unwrap_or_default();
    let build = format!(
        "export HOME='{home}' CARGO_TARGET_DIR=$PWD/built; unset CARGO_BUILD_TARGET RUSTFLAGS || true
        cp -r '{package}' small; cd small; '{cargo}' build --offline --quiet; ../built/debug/small"
    );
    assert_eq!(twins.run(&build), "made by the build script\n");
    let again = format!(
        "export HOME='{home}' CARGO_TARGET_DIR=$PWD/built; cd small
        '{cargo}' build --offline 2>&1 | grep -c Compiling || true
        touch -d '+2 seconds' src/main.rs; '{cargo}' build --offline 2>&1 | grep -c Compiling
        '{cargo}' test --offline --quiet 2>&1 | grep -c 'test result: ok. 1 passed'; ../built/debug/small"
    );
    twins.remount();
    assert_eq!(
        twins.run(&again),
        "0\n1\n1\nmade by the build script\n",
        "a second build compiles only what was touched"
    );
    // Programs and metadata have the paths of the two directories in them.
    twins.run("rm -r built");
    twins.end();
}

fn find_and_copies(door: &str) {
    let twins = Twins::new(door);
    // Without inode numbers, blocks and what a filesystem says of directories alone.
    let listed =
        twins.run("find . -mindepth 1 -ls | awk '{ $1 = $2 = \"\"; if ($3 ~ /^d/) $4 = $7 = \"\"; print }' | sort");
    assert!(listed.lines().count() > 200, "{listed}");
    twins.compare("", Detail::Contents);
    twins.run(
        "cp -a include copied; diff -r --no-dereference include copied
        cp -al doc linked; diff -r --no-dereference doc linked
        cp -a below copied-below; ls copied-below",
    );
    twins.compare("copied", Detail::Times);
    twins.run("cp -r below/symlink/. followed; find followed | sort; du -a --apparent-size --inodes followed | wc -l");
    twins.end();
}

fn removals_and_renames(door: &str) {
    let mut twins = Twins::new(door);
    twins.run(
        "echo file > include/moved-file; mv include moved
        mv $(find moved -mindepth 1 -maxdepth 1 -type d | sort | head -1) again
        mkdir include; ls -A include
        for file in $(find moved -name '*.h' -type f | sort | head -40); do sed -i 's/define/DEFINE/' $file; done
        find again doc | sort | sha256sum; chmod -R g+w doc; chown -R daemon:bin again
        ln moved/moved-file moved/third; find . -links +1 -type f | sort",
    );
    twins.remount();
    twins.run("mv again include/back; mv moved include/again; rm -r doc; mkdir doc; ls -A doc; echo new > doc/file; find . | sort");
    twins.remount();
    twins.run("rm -r include; ls -A; mkdir -p include/again; ls -AR include; rm -rf below doc; ls -A; mkdir below; ls -A below");
    twins.end();
}

through_both_doors! { git, tar, cargo_build, find_and_copies, removals_and_renames, sqlite }

fn sqlite(door: &str) {
    let mut twins = Twins::new(door);
    let load = "pragma journal_mode = $mode; create table t (id integer primary key, text text);
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000) insert into t select i, hex(i * i) from n;
        create index by_text on t (text); delete from t where id % 3 = 0; update t set text = text || '!' where id % 5 = 0;
        select count(*), sum(length(text)) from t; pragma integrity_check;";
    for mode in ["delete", "wal", "truncate"] {
        let load = load.replace("$mode", mode);
        twins.run(&format!(
            "sqlite3 {mode}.db \"{load}\"; sqlite3 {mode}.db 'vacuum; select max(text) from t; pragma integrity_check;'"
        ));
    }
    twins.remount();
    twins.run(
        "for db in *.db; do sqlite3 $db 'pragma integrity_check; select count(*), max(text) from t'; done; rm *.db*",
    );
    twins.end();
}

/// With hard links, ACLs and extended attributes, which the scheme does not have.
#[test]
fn rsync() {
    let mut twins = Twins::new("engine");
    for name in ["mount", "plain"] {
        let dir = twins.stage.path(name);
        shell(
            &dir,
            "setfacl -R -m u:daemon:r include; setfattr -n user.kind -v header $(find include -type f | sort | head -20)",
        );
        shell(&dir, "ln $(find include -type f | sort | head -1) doc/linked; rsync -aHAX include doc below copies");
        let unlike = shell(&dir, "rsync -naHAXci --delete include doc below copies");
        assert_eq!(unlike, "", "what rsync would have to do again");
    }
    twins.compare("copies", Detail::Contents);
    twins.run("cd copies; find . -type f -links +1 | sort; find . -type f | sort | xargs getfacl | sha256sum; find . -type f | sort | xargs getfattr -d | sha256sum");
    twins.remount();
    twins.run(
        "rm -r include/[a-m]*; rsync -aHAXi --delete copies/include . | sort; rsync -naHAXci --delete copies/include .",
    );
    twins.end();
}

/// A server with its data in the directory, as the user postgres.
#[test]
fn postgres() {
    let mut twins = Twins::new("engine");
    let start =
        "bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1); export PATH=$bin:$PATH; PGHOST=$PWD/db; export PGHOST
        as() { setpriv --reuid postgres --regid postgres --init-groups \"$@\"; }
        as pg_ctl -s -w -t 60 -D db/data -l db/log -o \"-k $PWD/db -h ''\" start >&2
        trap 'as pg_ctl -s -w -m fast -D db/data stop >&2' EXIT
        sql() { as psql -qAt -v ON_ERROR_STOP=1 -d postgres -c \"$1\"; }\n";
    let create = "mkdir db; chown postgres:postgres db; chmod 755 .
        setpriv --reuid postgres --regid postgres --init-groups $(ls -d /usr/lib/postgresql/*/bin | tail -1)/initdb -D db/data >&2\n";
    let load = "sql 'create table t (id int primary key, text text); insert into t select i, md5(i::text) from generate_series(1, 50000) i'
        sql 'create index on t (text); delete from t where id % 7 = 0; update t set text = upper(text) where id % 3 = 0'
        sql 'vacuum full t'; sql 'checkpoint'
        sql 'select count(*), md5(string_agg(text, null order by id)) from t'\n";
    let check =
        "sql 'select count(*), md5(string_agg(text, null order by id)) from t; drop table t; create table t (i int)'\n";
    let first = twins.run(&[create, start, load].concat());
    assert!(first.starts_with("42858|"), "{first}");
    twins.remount();
    assert!(twins.run(&[start, check].concat()).starts_with("42858|"));
    twins.run("rm -r db");
    twins.end();
}

/// A project with some dozens of packages.
#[test]
fn npm() {
    let mut twins = Twins::new("engine");
    let cache = twins.stage.dir("cache");
    let install = format!(
        "mkdir app; cd app; export npm_config_cache={} npm_config_audit=false npm_config_fund=false npm_config_update_notifier=false
        echo '{{\"name\": \"app\", \"version\": \"1.0.0\"}}' > package.json
        npm install --silent express@4.21.2 >&2; node -e 'require(\"express\")()'; npm ls --all | tail -n +2 | sha256sum; npm prune --silent >&2
        rm -rf node_modules; npm ci --silent >&2; find . -type f | grep -v package-lock | sort | xargs sha256sum | sha256sum",
        cache.display()
    );
    twins.run(&install);
    twins.compare("app", Detail::Contents);
    twins.remount();
    twins.run("cd app; node -e 'console.log(Object.keys(require(\"express\")).length)'; rm -r node_modules");
    twins.end();
}
