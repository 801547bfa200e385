//! Files with several names and a small cache: the engine evicts them, and a later lookup finds the
//! same files.

use std::collections::HashSet;
use std::sync::Weak;

use overlayfs::format::Wanted;

use super::*;

/// The limit of directories and names in the cache.
const KNOWN_MAX: usize = 50;
/// The number of files of each kind.
const FILES: usize = 40;

/// The format of the upper layer.
pub const FORMATS: [Option<Wanted>; 2] = [None, Some(Wanted::Kernel)];

/// Mounts an overlay with a small cache, over a lower layer with pairs of links: `first/N` and
/// `second/N`, `both/N` and `both/Nb`.
pub fn mount(setup: &Setup, format: Option<Wanted>) -> Mount<'_> {
    let lower = setup.dir("lower");
    for file in 0..FILES {
        put::file(&lower, &format!("first/{file}"), "below");
        put::link(&lower, &format!("first/{file}"), &format!("second/{file}"));
        put::file(&lower, &format!("both/{file}"), "below");
        put::link(&lower, &format!("both/{file}"), &format!("both/{file}b"));
        put::file(&lower, &format!("others/{file}/other"), "other");
    }
    let mut mount = Mount::new(setup);
    mount.leave();
    if format.is_some() {
        fs::remove_dir_all(setup.path("upper")).unwrap();
    }
    mount.settings = Settings { known_max: Some(KNOWN_MAX), format, ..Settings::default() };
    mount.again();
    mount
}

impl Mount<'_> {
    /// Makes the engine evict everything that is not in use.
    fn forget(&self) {
        for file in 0..FILES {
            self.find(&format!("others/{file}/other"));
        }
    }

    /// Checks that the names show a file with this content, number and link count.
    fn check(&self, names: &[String], text: &str, ino: u64, nlink: u32) {
        for name in names {
            let found = (self.read(name), self.ino(name), self.nlink(name));
            assert_eq!(found, (text.to_owned(), ino, nlink), "{name}");
        }
    }

    fn link(&self, from: &str, to: &str) {
        let (dir, name) = self.dir(to);
        self.overlay().link(&self.find(from), &dir, name).unwrap();
    }
}

fn known<T>(nodes: &[Weak<T>]) -> usize {
    nodes.iter().filter(|node| node.strong_count() > 0).map(Weak::as_ptr).collect::<HashSet<_>>().len()
}

#[test]
fn files_with_several_names_are_evicted() {
    for format in FORMATS {
        let setup = Setup::new();
        let mount = mount(&setup, format);
        let guard = LowerGuard::new([setup.path("lower")]);
        let mut nodes = Vec::new();
        // First unchanged, then with a write, then with one name less, then with one more.
        for change in 0..4 {
            for file in 0..FILES {
                let pairs = [
                    ["first", "second"].map(|dir| format!("{dir}/{file}")),
                    [format!("both/{file}"), format!("both/{file}b")],
                ];
                for [one, other] in pairs {
                    match change {
                        1 => mount.write(&one, "new"),
                        2 => mount.unlink(&one),
                        3 => mount.link(&other, &one),
                        _ => {}
                    }
                    nodes.extend(
                        [&one, &other].iter().filter(|_| change != 2).map(|name| Arc::downgrade(&mount.find(name))),
                    );
                    nodes.push(Arc::downgrade(&mount.find(&other)));
                }
            }
            mount.forget();
            let known = known(&nodes);
            assert!(known <= 2 * KNOWN_MAX, "{known} of {} are known after change {change}", nodes.len());
        }
        guard.check();
    }
}

#[test]
fn evicted_files_are_found_again() {
    for format in FORMATS {
        let setup = Setup::new();
        let mut mount = mount(&setup, format);
        mount.link("others/0/other", "upper");
        mount.link("upper", "first/upper");
        let pairs = [["first/1", "second/1"], ["both/2", "both/2b"], ["upper", "first/upper"]]
            .map(|pair| pair.map(str::to_owned));
        for [one, other] in pairs {
            let (mut text, ino, nlink) = (mount.read(&one), mount.ino(&one), mount.nlink(&one));
            let more = nlink - 2;
            let both = [one.clone(), other.clone()];
            for forgets in [0, 1, 2] {
                let forget = |mount: &mut Mount<'_>| match forgets {
                    0 => {}
                    1 => mount.forget(),
                    _ => mount.again(),
                };
                forget(&mut mount);
                mount.check(&both, &text, ino, more + 2);
                // The handle was opened by one name, and the lookup uses the other.
                let held = mount.overlay().open(&mount.find(&one));
                mount.forget();
                assert_eq!(mount.find(&other).id(), held.node().id(), "{other} is {one}");
                drop(held);
                forget(&mut mount);
                text = format!("{forgets}");
                mount.write(&one, &text);
                forget(&mut mount);
                mount.check(&both, &text, ino, more + 2);
                text += "?";
                mount.write(&other, &text);
                mount.check(&both, &text, ino, more + 2);
                forget(&mut mount);
                mount.link(&one, "another");
                forget(&mut mount);
                mount.check(&[other.clone(), "another".to_owned()], &text, ino, more + 3);
                mount.unlink(&one);
                forget(&mut mount);
                mount.check(&[other.clone(), "another".to_owned()], &text, ino, more + 2);
                mount.rename("another", &one);
                forget(&mut mount);
                mount.check(&both, &text, ino, more + 2);
            }
        }
    }
}

/// A handle keeps a copy open by a removed name. The engine must not take the inode number of the
/// copy for that of a removed file.
#[test]
fn a_copy_that_is_open_by_a_removed_name_keeps_its_number() {
    for format in FORMATS {
        let setup = Setup::new();
        let mut mount = mount(&setup, format);
        let ino = mount.ino("first/1");
        mount.rename("first/1", "renamed");
        mount.again();
        let held = mount.overlay().open(&mount.find("renamed"));
        mount.unlink("renamed");
        assert_eq!(mount.find("second/1").id(), held.node().id());
        drop(held);
        for _ in 0..2 {
            mount.forget();
            mount.check(&["second/1".to_owned()], "below", ino, 1);
            mount.again();
        }
    }
}

/// The next mount removes an index entry that is no longer needed. No time may change by that.
#[test]
fn a_copy_that_needs_no_index_entry_keeps_its_time() {
    for format in FORMATS {
        let setup = Setup::new();
        let mut mount = mount(&setup, format);
        let ctime = |mount: &Mount<'_>, name: &str| mount.overlay().stat(&mount.find(name)).unwrap().ctime;
        mount.rename("first/1", "renamed");
        mount.find("second/1");
        let before = ctime(&mount, "renamed");
        for _ in 0..3 {
            mount.again();
            assert_eq!(["renamed", "second/1"].map(|name| ctime(&mount, name)), [before; 2]);
        }
    }
}

/// An open file stays in the cache, whatever its name. A lookup by its other names finds the same
/// file.
#[test]
fn an_open_file_is_not_evicted() {
    for format in FORMATS {
        let setup = Setup::new();
        let mount = mount(&setup, format);
        let open: Vec<_> = (0..10).map(|file| mount.overlay().open(&mount.find(&format!("first/{file}")))).collect();
        for (file, handle) in open.iter().enumerate() {
            let other = format!("second/{file}");
            mount.forget();
            mount.write(&other, "new");
            mount.forget();
            mount.unlink(&format!("first/{file}"));
            mount.forget();
            let mut text = [0; 10];
            assert_eq!(mount.overlay().read_at(handle, &mut text, 0), Ok(3));
            assert_eq!(mount.overlay().stat(handle.node()).unwrap().nlink, 1);
            assert_eq!(mount.find(&other).id(), handle.node().id());
            mount.unlink(&other);
            mount.forget();
            assert_eq!(mount.overlay().write_at(handle, b"more", 0), Ok(4));
            assert_eq!(mount.overlay().stat(handle.node()).unwrap().nlink, 0);
        }
        drop(open);
        assert_eq!(mount.links(), [""; 0]);
    }
}
