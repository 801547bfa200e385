//! The engine above redoxfs and ramfs, where they differ from filesystems of Linux.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use linux_delegate::abi::{Maker, act_as, employ};
use linux_delegate::daemon::unused_name;
use linux_delegate::redoxfs::{Disk, Request};
use linux_delegate::{Daemon, Process};
use overlayfs::errno::{EIO, ENODEV, ENOSYS};
use overlayfs::layer::redox::RedoxLayer;
use overlayfs::layer::{Kind, Owner, RenameMode, Time};
use overlayfs::overlay::{Layers, Node, Overlay, Refused, Settings};

const OWN: Owner = Owner { uid: 0, gid: 0 };

type NodeRef = Arc<Node<RedoxLayer>>;
type Mounted = Result<Overlay<RedoxLayer>, Refused>;

fn open(disk: &Disk, path: &str, for_writing: bool) -> RedoxLayer {
    RedoxLayer::open(Path::new(&disk.path(path)), for_writing).unwrap()
}

/// Mounts an overlay of `upper` over `lower`, from the null namespace.
fn mount(upper: (&Disk, &str), lower: (&Disk, &str), settings: Settings) -> Mounted {
    std::thread::scope(|scope| {
        let mounted = scope.spawn(|| {
            let (upper, lower) = (open(upper.0, upper.1, true), open(lower.0, lower.1, false));
            libredox::call::setrens(0, 0).unwrap();
            Overlay::with_settings(Layers { upper: Some(upper), work: None, lowers: vec![lower] }, settings)
        });
        mounted.join().unwrap()
    })
}

fn plain(disk: &Disk) -> Mounted {
    mount((disk, "upper"), (disk, "lower"), Settings::default())
}

/// Makes a disk with an empty upper layer.
fn disk() -> Disk {
    let disk = Disk::redoxfs();
    disk.tree().put_dir("upper");
    disk.tree().put_dir("lower");
    disk
}

fn set_mode(disk: &Disk, path: &str, mode: u16) {
    let mut tree = disk.tree();
    let node = tree.look_mut(path);
    node.mode = node.mode & !0o7777 | mode;
}

#[test]
fn an_upper_layer_on_another_overlay_is_refused_with_the_reason() {
    let disk = disk();
    for dir in ["upper", "work"] {
        disk.tree().put_dir(&format!("upper/{dir}"));
    }
    let below = Daemon::serve(plain(&disk).unwrap(), unused_name("below"));
    let open = |path: &str| RedoxLayer::open(Path::new(&format!("/scheme/{}/{path}", below.name())), true).unwrap();
    for work in [None, Some(open("work"))] {
        let layers = Layers { upper: Some(open("upper")), work, lowers: vec![open("")] };
        let refused = Overlay::new(layers).err().unwrap().to_string();
        assert!(refused.contains("it seems to lie on another overlay; put it on another filesystem"), "{refused}");
    }
}

fn find(overlay: &Overlay<RedoxLayer>, path: &str) -> NodeRef {
    let mut names = path.split('/').filter(|name| !name.is_empty());
    names.try_fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name))).unwrap()
}

fn read(overlay: &Overlay<RedoxLayer>, path: &str) -> String {
    let mut bytes = vec![0; 100];
    let read = overlay.read_at(&overlay.open(&find(overlay, path)), &mut bytes, 0).unwrap();
    String::from_utf8(bytes[..read].to_vec()).unwrap()
}

fn rename(overlay: &Overlay<RedoxLayer>, from: (&NodeRef, &str), to: (&NodeRef, &str)) {
    overlay.rename(from.0, OsStr::new(from.1), to.0, OsStr::new(to.1), RenameMode::Replace).unwrap();
}

/// The upper layer knows its directories by their paths. The nodes of the engine do not.
#[test]
fn objects_below_a_renamed_directory_stay_usable() {
    let disk = disk();
    disk.tree().put_file("lower/merged/deep/lower", "lower");
    let before = disk.snapshot("lower");
    let overlay = plain(&disk).unwrap();
    let root = overlay.root().clone();
    let a = overlay.create_dir(&root, OsStr::new("a"), 0o755, OWN).unwrap();
    let b = overlay.create_dir(&a, OsStr::new("b"), 0o755, OWN).unwrap();
    let file = overlay.create_file(&b, OsStr::new("file"), 0o644, OWN).unwrap();
    let deep = find(&overlay, "merged/deep");
    overlay.create_file(&deep, OsStr::new("upper"), 0o644, OWN).unwrap();
    let lower = overlay.open(&find(&overlay, "merged/deep/lower"));

    rename(&overlay, (&root, "a"), (&root, "moved"));
    rename(&overlay, (&root, "merged"), (&a, "inside"));
    // Other objects take the old paths.
    let other = overlay.create_dir(&root, OsStr::new("a"), 0o755, OWN).unwrap();
    overlay.create_dir(&other, OsStr::new("b"), 0o755, OWN).unwrap();

    overlay.write_at(&file, b"written", 0).unwrap();
    overlay.create_file(&b, OsStr::new("new"), 0o644, OWN).unwrap();
    overlay.set_mode(&b, 0o711).unwrap();
    overlay.set_times(&b, Time { sec: 1, nsec: 2 }, Time { sec: 3, nsec: 4 }).unwrap();
    overlay.write_at(&lower, b"UP", 0).unwrap();
    overlay.create_symlink(&deep, OsStr::new("link"), OsStr::new("x"), OWN).unwrap();
    overlay.unlink(&deep, OsStr::new("upper")).unwrap();
    rename(&overlay, (&b, "file"), (&deep, "file"));
    overlay.link(file.node(), &b, OsStr::new("linked")).unwrap();

    assert_eq!(read(&overlay, "moved/inside/deep/file"), "written");
    assert_eq!(read(&overlay, "moved/inside/deep/lower"), "UPwer");
    drop((file, lower, overlay));
    let tree = disk.tree();
    assert_eq!(tree.names("upper/moved/b"), ["linked", "new"]);
    assert_eq!((tree.look("upper/moved/b").mode & 0o7777, tree.look("upper/moved/b").mtime), (0o711, (3, 4)));
    assert_eq!(tree.names("upper/moved/inside/deep"), ["file", "link", "lower"]);
    assert_eq!(tree.names("upper/a/b"), [""; 0]);
    drop(tree);
    disk.assert_same(&before);
}

#[test]
fn threads_work_below_directories_that_are_renamed() {
    const WORKERS: usize = 3;
    const STEPS: usize = 150;
    let disk = disk();
    for worker in 0..WORKERS {
        disk.tree().put_file(&format!("lower/d{worker}/sub/lower"), "lower");
    }
    let before = disk.snapshot("lower");
    let overlay = plain(&disk).unwrap();
    let (root, done) = (overlay.root().clone(), AtomicBool::new(false));
    let above = overlay.create_dir(&root, OsStr::new("above"), 0o755, OWN).unwrap();
    let dirs: Vec<_> = (0..WORKERS).map(|worker| find(&overlay, &format!("d{worker}/sub"))).collect();
    std::thread::scope(|scope| {
        let (overlay, done, root, above) = (&overlay, &done, &root, &above);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                for (from, to) in [(root, above), (above, root)] {
                    (0..WORKERS).for_each(|worker| {
                        let name = format!("d{worker}");
                        rename(overlay, (from, &name), (to, &name));
                    });
                }
            }
        });
        let work = |dir: NodeRef| {
            for step in 0..STEPS {
                let name = format!("f{step}");
                let file = overlay.create_file(&dir, OsStr::new(&name), 0o644, OWN).unwrap();
                overlay.write_at(&file, name.as_bytes(), 0).unwrap();
                assert_eq!(overlay.stat(file.node()).unwrap().size, name.len() as u64);
                if step % 3 == 0 {
                    overlay.unlink(&dir, OsStr::new(&name)).unwrap();
                } else if step % 3 == 1 {
                    rename(overlay, (&dir, &name), (&dir, &format!("g{step}")));
                }
                let lower = overlay.lookup(&dir, OsStr::new("lower")).unwrap();
                overlay.set_times(&lower, Time::default(), Time { sec: step as i64, nsec: 0 }).unwrap();
            }
        };
        let workers: Vec<_> = dirs.iter().map(|dir| scope.spawn(move || work(dir.clone()))).collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    drop((dirs, above, root, overlay));
    let expected = (0..STEPS).filter(|step| step % 3 != 0);
    let expected = expected.map(|step| (if step % 3 == 1 { format!("g{step}") } else { format!("f{step}") }, step));
    let mut expected: Vec<_> = expected.collect();
    expected.sort();
    for worker in 0..WORKERS {
        let dir = format!("upper/d{worker}/sub");
        let tree = disk.tree();
        let names = tree.names(&dir);
        let made: Vec<_> = names.iter().filter(|name| *name != "lower" && !name.starts_with(".wh.")).collect();
        assert_eq!(made, expected.iter().map(|(name, _)| name).collect::<Vec<_>>(), "{dir}");
        for (name, step) in &expected {
            assert_eq!(tree.text(&format!("{dir}/{name}")), format!("f{step}"));
        }
    }
    disk.assert_same(&before);
}

#[test]
fn a_new_object_belongs_to_the_caller() {
    let disk = disk();
    let overlay = plain(&disk).unwrap();
    let ann = Owner { uid: 1000, gid: 100 };
    let root = overlay.root().clone();
    let file = overlay.create_file(&root, OsStr::new("file"), 0o4750, ann).unwrap();
    overlay.write_at(&file, b"hers", 0).unwrap();
    overlay.create_dir(&root, OsStr::new("dir"), 0o2770, ann).unwrap();
    overlay.create_symlink(&root, OsStr::new("link"), OsStr::new("file"), ann).unwrap();
    let tree = disk.tree();
    for name in ["file", "dir", "link"] {
        let node = tree.look(&format!("upper/{name}"));
        assert_eq!((node.uid, node.gid), (1000, 100), "{name}");
    }
    assert_eq!(tree.look("upper/dir").mode & 0o7777, 0o2770);
    assert_eq!(tree.text("upper/file"), "hers");
}

/// Where its owner may make it, an object of another user belongs to that user from the first
/// request. So no rename is needed.
#[test]
fn a_user_makes_objects_in_place_where_the_layer_lets_the_user() {
    let ann = Owner { uid: 1000, gid: 100 };
    for (upper, renames) in [(0o755, 0), (0o700, 2)] {
        let disk = disk();
        disk.tree().put_dir("upper/open");
        set_mode(&disk, "upper/open", 0o777);
        set_mode(&disk, "upper", upper);
        let overlay = plain(&disk).unwrap();
        let dir = find(&overlay, "open");
        overlay.list(&overlay.open(&dir), 0, &mut |_| true).unwrap();
        disk.take_requests();
        let file = overlay.create_file(&dir, OsStr::new("file"), 0o4750, ann).unwrap();
        overlay.create_dir(&dir, OsStr::new("dir"), 0o2770, ann).unwrap();
        let requests = disk.take_requests();
        assert_eq!(requests.of(Request::Rename), renames, "{requests}");
        overlay.write_at(&file, b"hers", 0).unwrap();
        // The daemon's own rights count for what comes later.
        overlay.set_owner(&find(&overlay, "open/file"), OWN).unwrap();
        overlay.set_mode(&find(&overlay, "open/file"), 0o640).unwrap();
        for (name, owner, mode) in [("file", OWN, 0o640), ("dir", ann, 0o2770)] {
            let tree = disk.tree();
            let node = tree.look(&format!("upper/open/{name}"));
            assert_eq!((node.uid, node.gid, node.mode & 0o7777), (owner.uid, owner.gid, mode), "{name}");
        }
        assert_eq!(disk.tree().text("upper/open/file"), "hers");
    }
}

/// redoxfs decides by the opener who may change attributes through a descriptor. A file without a
/// name has no other way to them, so the daemon needs a descriptor of its own.
#[test]
fn attributes_of_a_deleted_file_can_be_set_whoever_made_and_owns_it() {
    let (ann, ben) = (Owner { uid: 1000, gid: 100 }, Owner { uid: 2000, gid: 200 });
    let disk = disk();
    set_mode(&disk, "upper", 0o777);
    let overlay = plain(&disk).unwrap();
    let root = overlay.root().clone();
    let file = overlay.create_file(&root, OsStr::new("file"), 0o640, ann).unwrap();
    overlay.write_at(&file, b"hers", 0).unwrap();
    overlay.set_owner(file.node(), ben).unwrap();
    overlay.unlink(&root, OsStr::new("file")).unwrap();
    overlay.set_mode(file.node(), 0o600).unwrap();
    overlay.set_times(file.node(), Time { sec: 1, nsec: 2 }, Time { sec: 3, nsec: 4 }).unwrap();
    overlay.set_owner(file.node(), ann).unwrap();
    let attr = overlay.stat(file.node()).unwrap();
    assert_eq!((attr.uid, attr.gid, attr.mode, attr.mtime.sec), (1000, 100, 0o600, 3));
    overlay.write_at(&file, b"his", 0).unwrap();
    let mut text = [0; 4];
    assert_eq!((overlay.read_at(&file, &mut text, 0).unwrap(), &text), (4, b"hiss"));
}

/// A maker that is killed leaves no object of an order that it did not answer. Later objects are
/// made without it.
#[test]
fn objects_of_users_are_made_without_a_maker_that_dies() {
    let ann = Owner { uid: 1000, gid: 100 };
    for makes_last in [false, true] {
        let disk = disk();
        set_mode(&disk, "upper", 0o777);
        let overlay = plain(&disk).unwrap();
        let root = overlay.root().clone();
        employ(Maker::Dies { after: 1, makes_last });
        for (name, renames) in [("first", 0), ("second", 1), ("third", 1)] {
            disk.take_requests();
            let file = overlay.create_file(&root, OsStr::new(name), 0o640, ann).unwrap();
            overlay.write_at(&file, b"hers", 0).unwrap();
            assert_eq!(disk.tree().text(&format!("upper/{name}")), "hers");
            assert_eq!(overlay.stat(file.node()).unwrap().uid, ann.uid);
            assert_eq!(disk.take_requests().of(Request::Rename), renames, "{name}");
        }
    }
}

/// A file without data is whole at once, so the copy needs no rename. A stop at any request leaves
/// the file as it was, or empty.
#[test]
fn a_truncated_file_is_made_in_its_place() {
    for requests in 0..20 {
        let mut disk = disk();
        disk.tree().put_file("lower/file", "lower");
        set_mode(&disk, "lower/file", 0o640);
        let before = disk.snapshot("lower");
        let overlay = plain(&disk).unwrap();
        let node = find(&overlay, "file");
        let number = overlay.stat(&node).unwrap().ino;
        disk.take_requests();
        disk.stop_after(requests);
        let truncated = overlay.truncate(&node, 0);
        let sent = disk.take_requests();
        assert_eq!(sent.of(Request::Rename), 0, "{sent}");
        if let (Ok(()), Ok(attr)) = (truncated, overlay.stat(&node)) {
            assert_eq!((attr.ino, attr.size, attr.mode), (number, 0, 0o640));
        }
        let done = truncated.is_ok() && sent.total() < requests;
        drop((node, overlay));
        disk.restart();
        let overlay = plain(&disk).unwrap();
        let text = read(&overlay, "file");
        assert!(text.is_empty() || !done && text == "lower", "after {requests} requests: {text:?}");
        assert_eq!(overlay.stat(&find(&overlay, "file")).unwrap().mode, 0o640);
        disk.assert_same(&before);
        if done {
            return;
        }
    }
    panic!("20 requests do not suffice");
}

#[test]
fn two_daemons_do_not_share_an_upper_layer() {
    let disk = disk();
    let as_process = || {
        std::thread::scope(|scope| {
            let mounted = scope.spawn(|| {
                act_as(&Process::new(0, 0));
                let layers = [open(&disk, "upper", true), open(&disk, "lower", false)];
                let [upper, lower] = layers;
                Overlay::new(Layers { upper: Some(upper), work: None, lowers: vec![lower] })
            });
            mounted.join().unwrap()
        })
    };
    let first = as_process().unwrap();
    assert!(matches!(as_process(), Err(Refused::Held(None))));
    drop(first);
    as_process().unwrap();
}

/// redoxfs writes every change to the disk before it answers, so only files need a sync.
#[test]
fn a_volatile_overlay_ends_well() {
    let disk = disk();
    let settings = Settings { volatile: true, ..Settings::default() };
    let overlay = mount((&disk, "upper"), (&disk, "lower"), settings).unwrap();
    overlay.create_file(overlay.root(), OsStr::new("file"), 0o644, OWN).unwrap();
    drop(overlay);
    assert_eq!(disk.tree().names("upper/.wh..wh.work"), ["record"], "the mark is gone");
    plain(&disk).unwrap();
}

#[test]
fn an_overlay_survives_the_end_of_its_filesystem() {
    let mut disk = disk();
    disk.tree().put_file("lower/d/file", "lower");
    let before = disk.snapshot("lower");
    let overlay = plain(&disk).unwrap();
    let file = overlay.open(&find(&overlay, "d/file"));
    overlay.write_at(&file, b"UP", 0).unwrap();
    disk.restart();
    assert!(matches!(overlay.write_at(&file, b"X", 0), Err(error) if [ENODEV, EIO].contains(&error.errno)));
    drop((file, overlay));
    let overlay = plain(&disk).unwrap();
    assert_eq!(read(&overlay, "d/file"), "UPwer");
    disk.assert_same(&before);
}

/// redoxfs reuses the number of a removed object for the next object at once.
#[test]
fn reused_numbers_name_other_objects() {
    let disk = disk();
    disk.tree().put_file("lower/kept", "kept");
    let overlay = plain(&disk).unwrap();
    let root = overlay.root().clone();
    let held = overlay.create_file(&root, OsStr::new("a"), 0o644, OWN).unwrap();
    let number = overlay.stat(held.node()).unwrap().ino;
    overlay.unlink(&root, OsStr::new("a")).unwrap();
    for step in 0..20 {
        let name = format!("n{}", step % 3);
        let new = overlay.create_file(&root, OsStr::new(&name), 0o644, OWN).unwrap();
        assert_ne!(overlay.stat(new.node()).unwrap().ino, number, "of a file that is still open");
        overlay.unlink(&root, OsStr::new(&name)).unwrap();
    }
    assert_eq!(overlay.stat(held.node()).unwrap().ino, number);
}

/// redoxfs stores zeros as any other bytes. So holes for the data of the lower file would save no
/// space.
#[test]
fn a_large_file_is_copied_whole() {
    let disk = disk();
    let content: Vec<u8> = (0..5_000_000u32).map(|index| (index % 251) as u8).collect();
    disk.tree().put_file("lower/large", content.clone());
    let before = disk.snapshot("lower");
    let overlay = plain(&disk).unwrap();
    let file = overlay.open(&find(&overlay, "large"));
    overlay.write_at(&file, b"changed", 3_000_000).unwrap();
    let mut expected = content;
    expected[3_000_000..][..7].copy_from_slice(b"changed");
    assert!(*disk.tree().look("upper/large").bytes().unwrap() == expected);
    disk.assert_same(&before);
}

#[test]
fn a_ramfs_can_be_a_lower_layer() {
    let (disk, ram) = (disk(), Disk::ramfs());
    ram.tree().put_file("dir/file", "text");
    ram.tree().put_file("dir/gone", "text");
    let before = ram.snapshot("");
    for lower in ["", "dir"] {
        let overlay = mount((&disk, "upper"), (&ram, lower), Settings::default()).unwrap();
        let dir = find(&overlay, if lower.is_empty() { "dir" } else { "" });
        let file = overlay.lookup(&dir, OsStr::new("file")).unwrap();
        assert_eq!(file.kind(), Kind::File);
        overlay.write_at(&overlay.open(&file), b"T", 0).unwrap();
        overlay.unlink(&dir, OsStr::new("gone")).unwrap();
        assert_eq!(overlay.stat(&file).unwrap().size, 4);
    }
    assert_eq!(disk.tree().text("upper/dir/file"), "Text");
    assert_eq!(disk.tree().text("upper/file"), "Text");
    ram.assert_same(&before);
}

#[test]
fn a_ramfs_is_refused_as_an_upper_layer() {
    let (disk, ram) = (disk(), Disk::ramfs());
    ram.tree().put_dir("upper");
    for upper in ["", "upper", ""] {
        let refused = mount((&ram, upper), (&disk, "lower"), Settings::default()).err().unwrap();
        assert!(matches!(refused, Refused::CannotRename(error) if error.errno == ENOSYS), "{refused}");
        assert!(refused.to_string().contains("cannot rename"), "{refused}");
    }
}
