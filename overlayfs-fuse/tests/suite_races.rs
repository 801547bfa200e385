//! Concurrent threads and processes on a mount. A directory moves while shells work in it. Files
//! are copied up during renames and unlinks. A listing meets each lasting entry once.
//!
//! At the end the next mount shows the same tree, and the lower layer has not changed.
//!
//! Needs root and /dev/fuse; fails without them. `RACES=20 cargo test -p overlayfs-fuse --test
//! suite_races` repeats twenty times as often.

#[macro_use]
#[path = "suite/front_ends.rs"]
mod front_ends;
#[path = "suite/fixture.rs"]
mod fixture;
#[path = "suite/mount.rs"]
mod mount;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fixture::Fixture;
use mount::Mount;
use rustix::fs::{Dir, Mode, OFlags};
use test_common::{Detail, LowerGuard, Snapshot, put};

through_both_front_ends!(
    a_directory_moves_while_shells_work_in_it,
    files_are_written_while_their_names_change,
    a_listing_ends_while_each_listed_name_comes_again,
);

/// Large enough for a partial copy.
const LARGE: usize = (1 << 20) + 300_000;

fn times(usual: usize) -> usize {
    usual * std::env::var("RACES").map_or(1, |times| times.parse().expect("RACES is a number"))
}

struct Mounted {
    mount: Mount,
    point: PathBuf,
    more: String,
    guard: LowerGuard,
    fixture: Fixture,
}

impl Mounted {
    /// Mounts the layers after `fill` has filled the lower and the upper one.
    fn new(front_end: &str, fill: impl FnOnce(&Path, &Path)) -> Self {
        let fixture = Fixture::new();
        fill(&fixture.path("lower"), &fixture.path("upper"));
        let more = format!(",door={front_end}");
        Self { mount: fixture.mount(&more), point: fixture.point(), more, guard: fixture.guard(), fixture }
    }

    /// Unmounts, and compares the tree with that of another mount.
    fn check(self) {
        let before = Snapshot::take(&self.point, Detail::Contents);
        self.mount.unmount();
        let again = self.fixture.mount(&self.more);
        before.assert_same(&Snapshot::take(&self.point, Detail::Contents), "the tree after a new mount");
        again.unmount();
        self.guard.check();
    }
}

/// Starts a shell that makes, changes, moves and removes files in a directory, `often` times.
fn shell(dir: &Path, name: &str, often: usize) -> Child {
    let script = format!(
        "set -e; i=0
        while [ $i -lt {often} ]; do
            echo $i >{name}$i; read -r seen <{name}$i; [ \"$seen\" = $i ]
            mv {name}$i {name}-moved; read -r seen <{name}-moved; [ \"$seen\" = $i ]
            echo changed >>stays$((i % 10)); ln {name}-moved {name}-linked; rm {name}-moved {name}-linked
            [ ! -e {name}$i ]; i=$((i + 1))
        done"
    );
    Command::new("sh").args(["-c", &script]).current_dir(dir).spawn().unwrap()
}

fn a_directory_moves_while_shells_work_in_it(front_end: &str) {
    let mounted = Mounted::new(front_end, |lower, _| {
        for number in 0..20 {
            put::file(lower, &format!("from/dir/deep/stays{number}"), "data\n");
        }
        put::dir(lower, "to");
    });
    let point = &mounted.point;
    let (here, there, deep) = (point.join("from/dir"), point.join("to/moved"), point.join("from/dir/deep"));
    let dir = rustix::fs::open(&deep, OFlags::DIRECTORY, Mode::empty()).unwrap();
    let shells = ["a", "b"].map(|name| shell(&deep, name, times(30)));
    let ended = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                fs::rename(&here, &there).unwrap();
                fs::rename(&there, &here).unwrap();
            }
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                let mut met: HashMap<String, usize> = HashMap::new();
                for entry in Dir::read_from(&dir).unwrap() {
                    *met.entry(entry.unwrap().file_name().to_str().unwrap().to_owned()).or_default() += 1;
                }
                for number in 0..20 {
                    assert_eq!(met.get(&format!("stays{number}")), Some(&1), "stays{number} in {met:?}");
                }
            }
        });
        let failed: Vec<_> =
            shells.into_iter().map(|mut shell| shell.wait().unwrap()).filter(|it| !it.success()).collect();
        ended.store(true, Ordering::Relaxed);
        assert!(failed.is_empty(), "{failed:?}");
    });
    drop(dir);
    let changes: usize = (0..20)
        .map(|number| fs::read_to_string(deep.join(format!("stays{number}"))).unwrap().lines().count() - 1)
        .sum();
    assert_eq!((changes, fs::read_dir(&deep).unwrap().count()), (2 * times(30), 20));
    mounted.check();
}

fn files_are_written_while_their_names_change(front_end: &str) {
    let base: Vec<u8> = (0..LARGE).map(|index| (index / 4096) as u8 | 1).collect();
    let rounds = times(4);
    let mounted = Mounted::new(front_end, |lower, _| {
        for round in 0..rounds {
            put::file(lower, &format!("dir/large{round}"), &base);
            put::file(lower, &format!("dir/small{round}"), &base[..5000]);
            put::link(lower, &format!("dir/small{round}"), &format!("dir/linked{round}"));
        }
    });
    let dir = &mounted.point.join("dir");
    for round in 0..rounds {
        let path = |name: &str| dir.join(format!("{name}{round}"));
        let open = |name| File::options().read(true).write(true).open(path(name)).unwrap();
        let files = &["large", "small", "linked"].map(open);
        thread::scope(|scope| {
            for number in 0..3u8 {
                scope.spawn(move || {
                    for step in 0..6usize {
                        for (file, apart) in files.iter().zip([200_000, 1, 1]) {
                            let at = (100 * usize::from(number) + step * apart) as u64;
                            file.write_all_at(&[number], at).unwrap();
                            let mut byte = [255];
                            file.read_exact_at(&mut byte, at).unwrap();
                            assert_eq!(byte, [number]);
                        }
                    }
                });
            }
            scope.spawn(|| files.iter().for_each(|file| file.sync_all().unwrap()));
            scope.spawn(|| {
                match round % 4 {
                    0 => fs::remove_file(path("large")).unwrap(),
                    1 => fs::rename(path("large"), path("renamed")).unwrap(),
                    2 => fs::hard_link(path("large"), path("second")).unwrap(),
                    _ => fs::rename(path("small"), path("large")).unwrap(),
                }
                if round % 2 == 0 {
                    fs::remove_file(path("small")).unwrap();
                }
            });
        });
        for (file, (base, apart)) in files.iter().zip([(&base[..], 200_000), (&base[..5000], 1), (&base[..5000], 1)]) {
            let mut expected = base.to_vec();
            for number in 0..3u8 {
                (0..6).for_each(|step| expected[100 * usize::from(number) + step * apart] = number);
            }
            let mut bytes = vec![0; expected.len()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert!(bytes == expected, "round {round}: a write or the old content is lost");
        }
    }
    mounted.check();
}

/// The number of listed files, each of which is renamed during the listing. It is smaller for the
/// slower front end, but exceeds one answer.
const LISTED: [(&str, usize); 2] = [("engine", 3000), ("scheme", 1200)];

/// The change of each listed file.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// It gets another name, and its own again.
    Aside,
    /// It is removed, and a new file gets its name.
    Anew,
    /// Its name gets a suffix.
    Suffix,
}

/// Names come again during the listing. It must end after few more entries than there are files:
/// ext4 lists 4288 if each file is renamed aside.
fn a_listing_ends_while_each_listed_name_comes_again(front_end: &str) {
    let turns = [Turn::Aside, Turn::Anew, Turn::Suffix];
    let listed = LISTED.iter().find(|(name, _)| *name == front_end).unwrap().1;
    let mounted = Mounted::new(front_end, |lower, upper| {
        for turn in turns {
            for file in 0..listed {
                // A copy-up of all files would take long.
                let layer = if file % 20 == 0 { lower } else { upper };
                put::file(layer, &format!("{turn:?}/file-{file}"), "");
            }
        }
    });
    for turn in turns {
        let dir = mounted.point.join(format!("{turn:?}"));
        let (mut told, temp) = (0, dir.join("aside"));
        for entry in fs::read_dir(&dir).unwrap() {
            told += 1;
            assert!(told <= 3 * listed, "{turn:?}: the listing does not end");
            let name = entry.unwrap().file_name();
            let path = dir.join(&name);
            match turn {
                Turn::Aside => fs::rename(&path, &temp).and_then(|()| fs::rename(&temp, &path)),
                Turn::Anew => fs::remove_file(&path).and_then(|()| File::create(&path).map(drop)),
                Turn::Suffix => {
                    let mut longer = name;
                    longer.push("+");
                    fs::rename(&path, dir.join(&longer))
                }
            }
            .unwrap_or_else(|error| panic!("{turn:?} {}: {error}", path.display()));
        }
        assert!(told >= listed, "{turn:?}: {told} names are listed");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), listed, "{turn:?}");
    }
    mounted.mount.unmount();
    mounted.guard.check();
}
