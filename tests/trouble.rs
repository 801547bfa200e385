//! A layer that fails for a while: a file server that was restarted (ESTALE), or a disk that does
//! not answer. Every operation returns the error and changes nothing. Once the layer is back, it
//! succeeds.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use overlayfs::errno::{EIO, ENOSPC, EROFS, ESTALE, Error};
use overlayfs::layer::counted::{Counted, Counts, Method};
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode, Result, Time, XattrMode};
use overlayfs::overlay::{Layers, Node, Overlay};
use test_common::{Detail, LowerGuard, Setup, Snapshot, put};

type Counting = Counted<OsLayer>;

const OWN: Owner = Owner { uid: 0, gid: 0 };

fn mount(setup: &Setup, counts: &Counts) -> Overlay<Counting> {
    let open = |name: &str, for_writing| Counted::new(OsLayer::open(&setup.dir(name), for_writing).unwrap(), counts);
    Overlay::new(Layers { upper: Some(open("upper", true)), work: None, lowers: vec![open("lower", false)] }).unwrap()
}

fn find(overlay: &Overlay<Counting>, path: &str) -> Result<Arc<Node<Counting>>> {
    path.split('/').try_fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)))
}

/// Makes directories of a lower layer, one for each operation, and one of the upper layer.
fn fill(setup: &Setup, count: usize) {
    let lower = setup.dir("lower");
    for index in 0..count {
        put::file(&lower, &format!("{index}/file"), "content");
        put::symlink(&lower, &format!("{index}/symlink"), "file");
        put::dir(&lower, &format!("{index}/empty"));
    }
    put::file(&setup.dir("upper"), "in-upper/file", "content");
}

type Work = fn(&Overlay<Counting>, &str) -> Result<()>;

/// Operations that need a layer, each in a directory of its own.
const WORKS: [(&str, Work); 16] = [
    ("lookup", |overlay, dir| find(overlay, &format!("{dir}/file")).map(drop)),
    ("list", |overlay, dir| overlay.list(&overlay.open(&find(overlay, dir)?), 0, &mut |_| true)),
    ("read", |overlay, dir| {
        overlay.read_at(&overlay.open(&find(overlay, &format!("{dir}/file"))?), &mut [0; 9], 0).map(drop)
    }),
    ("read a link", |overlay, dir| overlay.read_link(&find(overlay, &format!("{dir}/symlink"))?).map(drop)),
    ("attributes", |overlay, dir| overlay.xattrs(&find(overlay, &format!("{dir}/file"))?).map(drop)),
    ("create", |overlay, dir| overlay.create_file(&find(overlay, dir)?, OsStr::new("new"), 0o600, OWN).map(drop)),
    ("mkdir", |overlay, dir| overlay.create_dir(&find(overlay, dir)?, OsStr::new("new"), 0o700, OWN).map(drop)),
    ("symlink", |overlay, dir| {
        overlay.create_symlink(&find(overlay, dir)?, OsStr::new("new"), OsStr::new("x"), OWN).map(drop)
    }),
    ("mknod", |overlay, dir| {
        overlay.create_node(&find(overlay, dir)?, OsStr::new("new"), Kind::Fifo, 0o600, 0, OWN).map(drop)
    }),
    ("unlink", |overlay, dir| overlay.unlink(&find(overlay, dir)?, OsStr::new("file"))),
    ("rmdir", |overlay, dir| overlay.remove_dir(&find(overlay, dir)?, OsStr::new("empty"))),
    ("rename", |overlay, dir| {
        let parent = find(overlay, dir)?;
        overlay.rename(&parent, OsStr::new("file"), &parent, OsStr::new("new"), RenameMode::Replace)
    }),
    ("link", |overlay, dir| {
        overlay.link(&find(overlay, &format!("{dir}/file"))?, &find(overlay, dir)?, OsStr::new("new"))
    }),
    ("write", |overlay, dir| {
        let file = overlay.open(&find(overlay, &format!("{dir}/file"))?);
        overlay.write_at(&file, b"x", 0).map(drop)
    }),
    ("set attributes", |overlay, dir| {
        let file = find(overlay, &format!("{dir}/file"))?;
        overlay.set_mode(&file, 0o640)?;
        overlay.set_owner(&file, Owner { uid: 7, gid: 8 })?;
        overlay.set_times(&file, Time { sec: 1, nsec: 2 }, Time { sec: 3, nsec: 4 })?;
        overlay.set_xattr(&file, OsStr::new("user.a"), b"b", XattrMode::Set)
    }),
    ("sync", |overlay, dir| {
        let file = overlay.open(&find(overlay, &format!("{dir}/file"))?);
        overlay.truncate(file.node(), 3)?;
        overlay.sync(&file)
    }),
];

fn tree(path: &Path) -> Snapshot {
    Snapshot::take(path, Detail::Contents)
}

#[test]
fn a_layer_that_fails_for_a_while() {
    for errno in [ESTALE, EIO, ENOSPC, EROFS] {
        let setup = Setup::new();
        fill(&setup, WORKS.len());
        let guard = LowerGuard::new([setup.path("lower")]);
        let (counts, gone) = (Counts::default(), Arc::new(AtomicBool::new(false)));
        let overlay = mount(&setup, &counts);
        let is_gone = gone.clone();
        counts.interpose(move |_| if is_gone.load(Ordering::Relaxed) { Err(Error::new(errno)) } else { Ok(()) });
        // For every second operation the names of the directory are in the cache, for the others
        // nothing.
        for index in (0..WORKS.len()).step_by(2) {
            find(&overlay, &index.to_string()).unwrap();
        }
        let before = tree(&setup.path("upper"));

        gone.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            for (index, (name, work)) in WORKS.iter().enumerate() {
                assert_eq!(work(&overlay, &index.to_string()), Err(Error::new(errno)), "{name}");
            }
            assert!(overlay.stat(overlay.root()).is_ok(), "cached answers need no layer");
        }
        before.assert_same(&tree(&setup.path("upper")), "the upper layer");

        gone.store(false, Ordering::Relaxed);
        for (index, (name, work)) in WORKS.iter().enumerate() {
            assert_eq!(work(&overlay, &index.to_string()), Ok(()), "{name}");
        }
        let there = |path: &str| find(&overlay, path).is_ok();
        for (index, (name, _)) in WORKS.iter().enumerate() {
            let makes = ["create", "mkdir", "symlink", "mknod", "rename", "link"].contains(name);
            let takes = ["unlink", "rename"].contains(name);
            assert_eq!(there(&format!("{index}/new")), makes, "{name}");
            assert_eq!(there(&format!("{index}/file")), !takes, "{name}");
            assert_eq!(there(&format!("{index}/empty")), *name != "rmdir", "{name}");
        }
        drop(overlay);
        let left: Vec<_> = fs::read_dir(setup.path("upper/.wh..wh.work")).unwrap().flatten().collect();
        assert!(!left.iter().any(|entry| entry.file_name().to_str().unwrap().starts_with("tmp.")), "{left:?}");
        guard.check();
    }
}

/// On a full disk the opaque mark of a new directory may fail. Then the whiteout beside it keeps
/// lower files hidden. No later operation may rely on the missing mark.
#[test]
fn a_mark_that_could_not_be_made_does_not_count() {
    for moves_over_another in [false, true] {
        let setup = Setup::new();
        let lower = setup.dir("lower");
        for dir in ["gone", "hides", "moved"] {
            put::file(&lower, &format!("{dir}/old"), "of the lower layer");
        }
        let counts = Counts::default();
        let overlay = mount(&setup, &counts);
        let root = overlay.root().clone();
        for dir in ["gone", "hides"] {
            overlay.unlink(&find(&overlay, dir).unwrap(), OsStr::new("old")).unwrap();
        }
        overlay.remove_dir(&root, OsStr::new("gone")).unwrap();
        let is_full = Arc::new(AtomicBool::new(true));
        let full = is_full.clone();
        counts.interpose(move |method| match method {
            Method::CreateFile | Method::CreateEmpty if full.load(Ordering::Relaxed) => Err(Error::new(ENOSPC)),
            _ => Ok(()),
        });
        overlay.create_dir(&root, OsStr::new("gone"), 0o755, OWN).unwrap();
        is_full.store(false, Ordering::Relaxed);
        let moves = |from: &str, to: &str| {
            overlay.rename(&root, OsStr::new(from), &root, OsStr::new(to), RenameMode::Replace).unwrap();
        };
        let now = if moves_over_another {
            moves("gone", "hides");
            "hides"
        } else {
            // The other name exists in lower layers and has no whiteout.
            moves("moved", "elsewhere");
            moves("gone", "moved");
            "moved"
        };
        let list = |overlay: &Overlay<Counting>| {
            let mut names = Vec::new();
            let dir = overlay.open(&find(overlay, now).unwrap());
            overlay
                .list(&dir, 0, &mut |entry| {
                    names.push(entry.name.to_owned());
                    true
                })
                .unwrap();
            names
        };
        assert!(list(&overlay).is_empty());
        drop(overlay);
        assert!(list(&mount(&setup, &Counts::default())).is_empty(), "deleted files are back in {now}");
    }
}

/// A mark that hides nothing and could not be removed is remembered, so its directory can be
/// removed.
#[test]
fn a_mark_that_cannot_be_removed_blocks_no_removal() {
    let setup = Setup::new();
    put::file(&setup.dir("lower"), "other", "");
    put::file(&setup.dir("upper"), "dir/.wh.name", "");
    let counts = Counts::default();
    let overlay = mount(&setup, &counts);
    let (root, dir) = (overlay.root().clone(), find(&overlay, "dir").unwrap());
    let fails = Arc::new(AtomicBool::new(true));
    let failing = fails.clone();
    counts.interpose(move |method| match method {
        Method::Unlink if failing.load(Ordering::Relaxed) => Err(Error::new(EIO)),
        _ => Ok(()),
    });
    overlay.create_file(&dir, OsStr::new("name"), 0o600, OWN).unwrap();
    fails.store(false, Ordering::Relaxed);
    overlay.rename(&dir, OsStr::new("name"), &root, OsStr::new("moved"), RenameMode::Replace).unwrap();
    overlay.remove_dir(&root, OsStr::new("dir")).unwrap();
    assert_eq!(test_common::names(&setup.path("upper")), [".wh..wh.work", "moved"]);
}
