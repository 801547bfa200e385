//! Files with several names where little is remembered: they are forgotten as others are, and are
//! the same files when they are met again.

use std::collections::HashSet;
use std::sync::Weak;

use overlayfs::format::Wanted;

use super::*;

/// How many directories and names are remembered.
const KNOWN_MAX: usize = 50;
/// How many files there are of each sort.
const FILES: usize = 40;

/// How the upper layer is written.
const FORMATS: [Option<Wanted>; 2] = [None, Some(Wanted::Kernel)];

/// A mount that remembers little, over a lower layer with pairs of links: `first/N` and `second/N`;
/// `both/N` and `both/Nb`.
fn mount(setup: &Setup, format: Option<Wanted>) -> Mount<'_> {
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
    /// Has whatever nobody holds be forgotten.
    fn forget(&self) {
        for file in 0..FILES {
            self.find(&format!("others/{file}/other"));
        }
    }

    /// Both names show a file with this content and number, and so many names.
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
fn files_with_several_names_are_forgotten() {
    for format in FORMATS {
        let setup = Setup::new();
        let mount = mount(&setup, format);
        let guard = LowerGuard::new([setup.path("lower")]);
        let mut nodes = Vec::new();
        // As they are, then changed, then with one name less, and with one more.
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
fn files_that_were_forgotten_are_the_same_files() {
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
                // Held by one name, found by the other.
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

/// The number is not taken for that of a removed file while somebody holds the copy by a name that
/// is gone.
#[test]
fn a_copy_that_is_held_by_a_name_that_is_gone_keeps_its_number() {
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

/// Of a copy that needs its name in the work directory no more the next mount removes it, which
/// nobody is to see.
#[test]
fn a_copy_that_needs_no_name_of_its_own_keeps_its_time() {
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

/// Whoever has a file open, by whatever name, keeps it, and nobody finds another by the other
/// names.
#[test]
fn what_is_open_is_not_forgotten() {
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
