//! Upper layers in the format of the kernel's overlayfs: detection of the format, its limits, the
//! steps of its changes, and metacopies. Also marks of that format in upper layers of the OCI
//! format.
//!
//! Needs root, for attributes in the namespace `trusted`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use overlayfs::errno::{EINVAL, EIO, ENOENT, EPERM, Error};
use overlayfs::format::Wanted;
use overlayfs::layer::counted::{Counted, Counts};
use overlayfs::layer::{Kind, OsLayer, Owner, RenameMode};
use overlayfs::mount::mount;
use overlayfs::options::Options;
use overlayfs::overlay::{Layers, Node, Overlay, Settings};
use rustix::fs::{FileType, XattrFlags};
use test_common::{LowerGuard, Setup, names, put};

const OWN: Owner = Owner { uid: 0, gid: 0 };

fn options(setup: &Setup, format: Option<Wanted>) -> Options {
    let (upper, work) = (Some(setup.dir("upper")), Some(setup.dir("work")));
    Options { lowers: vec![setup.dir("lower"), setup.dir("bottom")], upper, work, format, ..Options::default() }
}

fn overlay(setup: &Setup, format: Option<Wanted>) -> Overlay<OsLayer> {
    mount(&options(setup, format)).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(options: &Options) -> String {
    mount(options).err().unwrap_or_else(|| panic!("{options:?} was mounted")).to_string()
}

fn find(overlay: &Overlay<OsLayer>, path: &str) -> Result<Arc<Node<OsLayer>>, Error> {
    path.split('/').try_fold(overlay.root().clone(), |dir, name| overlay.lookup(&dir, OsStr::new(name)))
}

fn read(overlay: &Overlay<OsLayer>, path: &str) -> Result<String, Error> {
    let mut bytes = vec![0; 100];
    let read = overlay.read_at(&overlay.open(&find(overlay, path)?), &mut bytes, 0)?;
    Ok(String::from_utf8(bytes[..read].to_vec()).unwrap())
}

fn errno<T>(result: Result<T, Error>) -> i32 {
    result.map(drop).map_or_else(|error| error.errno, |()| 0)
}

/// A crash during a mount prevents no later mount.
#[test]
fn a_mount_succeeds_after_a_crash_during_a_mount() {
    for format in [Wanted::Oci, Wanted::Kernel] {
        for calls in 0.. {
            let (setup, counts) = (Setup::new(), Counts::default());
            let [lower, upper, work] = ["lower", "upper", "work"].map(|name| setup.dir(name));
            setup.dir("bottom");
            put::file(&lower, "file", "lower");
            let (upper, work) = OsLayer::open_pair(&upper, &work).unwrap();
            let counted = |layer| Counted::new(layer, &counts);
            let layers = Layers {
                upper: Some(counted(upper)),
                work: Some(counted(work)),
                lowers: vec![counted(OsLayer::open(&lower, false).unwrap())],
            };
            counts.stop_after(calls);
            let settings = Settings { format: Some(format), ..Settings::default() };
            let mounted = Overlay::with_settings(layers, settings);
            let whole = mounted.is_ok();
            counts.stop_after(0);
            drop(mounted);
            assert_eq!(read(&overlay(&setup, Some(format)), "file").unwrap(), "lower", "{format:?}, {calls} calls");
            if whole {
                break;
            }
        }
    }
}

fn set(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(path, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

fn get(path: &Path, name: &str) -> Option<String> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::getxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(String::from_utf8(value).unwrap())
}

fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|stat| stat.file_type().is_char_device() && stat.rdev() == 0)
}

/// Makes a metacopy of `size` bytes at a path of a layer.
fn metacopy(layer: &Path, path: &str, size: u64, redirect: Option<&str>) -> PathBuf {
    let path = put::file(layer, path, "");
    fs::File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
    set(&path, "trusted.overlay.metacopy", "");
    if let Some(redirect) = redirect {
        set(&path, "trusted.overlay.redirect", redirect);
    }
    path
}

#[test]
fn a_layer_stays_in_the_format_that_it_was_begun_in() {
    let setup = Setup::new();
    drop(overlay(&setup, Some(Wanted::Kernel)));
    assert_eq!(get(&setup.path("upper"), "trusted.overlay.format").as_deref(), Some("kernel"));
    // The next mount needs no option for the format, and refuses another one.
    put::file(&setup.dir("lower"), "file", "");
    let again = overlay(&setup, None);
    again.unlink(again.root(), OsStr::new("file")).unwrap();
    drop(again);
    assert!(is_whiteout(&setup.path("upper/file")));
    drop(overlay(&setup, Some(Wanted::Kernel)));
    let said = refusal(&options(&setup, Some(Wanted::Oci)));
    assert!(said.contains("as its attributes trusted.overlay.* show"), "{said}");
}

#[test]
fn a_layer_of_the_kernel_is_known_and_a_plain_one_is_an_image_layer() {
    let setup = Setup::new();
    put::file(&setup.dir("lower"), "file", "");
    let delete = |format| {
        let overlay = overlay(&setup, format);
        overlay.unlink(overlay.root(), OsStr::new("file")).unwrap();
    };
    delete(None);
    assert_eq!(names(&setup.path("upper")), [".wh.file"]);
    let said = refusal(&options(&setup, Some(Wanted::Kernel)));
    assert!(said.contains("the upper layer is an OCI image layer, as the name .wh.file in it shows"), "{said}");
    put::file(&setup.path("upper"), "deep/er/.wh.name", "");
    fs::remove_file(setup.path("upper/.wh.file")).unwrap();
    let said = refusal(&options(&setup, Some(Wanted::Kernel)));
    assert!(said.contains("as the name deep/er/.wh.name in it shows"), "{said}");

    for (sign, prefix) in [("user.overlay.uuid", "user."), ("trusted.overlay.impure", "trusted.")] {
        fs::remove_dir_all(setup.path("upper")).unwrap();
        put::file(&setup.dir("lower"), "dir/file", "");
        set(&setup.dir("upper"), sign, "y");
        delete(None);
        assert!(is_whiteout(&setup.path("upper/file")));
        let overlay = overlay(&setup, None);
        overlay.unlink(&find(&overlay, "dir").unwrap(), OsStr::new("file")).unwrap();
        overlay.remove_dir(overlay.root(), OsStr::new("dir")).unwrap();
        overlay.create_dir(overlay.root(), OsStr::new("dir"), 0o750, OWN).unwrap();
        assert_eq!(get(&setup.path("upper/dir"), &format!("{prefix}overlay.opaque")).as_deref(), Some("y"));
        assert_eq!(get(&setup.path("upper"), &format!("{prefix}overlay.format")), None, "it is marked already");
    }
}

#[test]
fn a_work_directory_of_its_own_is_needed() {
    let setup = Setup::new();
    let said = refusal(&Options { work: None, ..options(&setup, Some(Wanted::Kernel)) });
    assert!(said.contains("needs a work directory beside it"), "{said}");
    assert_eq!(names(&setup.path("upper")), [""; 0]);
    assert_eq!(get(&setup.path("upper"), "trusted.overlay.format"), None);
}

#[test]
fn the_kernels_index_of_links_is_not_lost() {
    let setup = Setup::new();
    setup.dir("work/index");
    put::file(&setup.dir("work"), "work/left", "");
    drop(overlay(&setup, Some(Wanted::Kernel)));
    assert!(!setup.path("work/index").exists(), "an empty one is no loss");
    put::file(&setup.dir("work"), "index/00fb", "");
    let said = refusal(&options(&setup, None));
    assert!(said.contains("remove the directory index from the work directory"), "{said}");
    assert!(setup.path("work/index/00fb").exists());
}

/// Names of OCI marks are ordinary names in this format. A device that would be a whiteout cannot
/// be made.
#[test]
fn limits_of_the_format() {
    let setup = Setup::new();
    put::file(&setup.dir("lower"), "hidden", "");
    put::file(&setup.dir("lower"), "file", "lower");
    put::file(&setup.dir("lower"), ".wh.below", "");
    put::file(&setup.dir("bottom"), "below", "");
    let (name, overlay) = (OsStr::new(".wh.hidden"), overlay(&setup, Some(Wanted::Kernel)));
    let root = overlay.root();
    assert_eq!(errno(find(&overlay, "below")), ENOENT, "lower layers are read in both formats");
    assert_eq!(errno(find(&overlay, ".wh.below")), ENOENT);
    drop(overlay.create_file(root, name, 0o600, OWN).unwrap());
    assert_eq!(errno(overlay.create_node(root, OsStr::new("dev"), Kind::CharDev, 0o600, 0, OWN)), EPERM);
    assert_eq!(errno(overlay.create_node(root, OsStr::new("dev"), Kind::CharDev, 0o600, 0x103, OWN)), 0);
    let moved = overlay.rename(root, OsStr::new("file"), root, OsStr::new("new"), RenameMode::Whiteout);
    assert_eq!(errno(moved), EINVAL);
    drop(overlay);
    let overlay = self::overlay(&setup, None);
    for path in [".wh.hidden", "hidden", "file", "dev"] {
        assert_eq!(errno(find(&overlay, path)), 0, "{path}");
    }
}

/// One step replaces a whiteout, also by a directory. One step replaces a directory by a whiteout.
#[test]
fn whiteouts_are_made_and_replaced_in_one_step() {
    let setup = Setup::new();
    for file in ["dir/one", "other/one", "empty/one", "file"] {
        put::file(&setup.dir("lower"), file, file);
    }
    let upper = setup.path("upper");
    let overlay = overlay(&setup, Some(Wanted::Kernel));
    let (root, move_to) = (overlay.root(), RenameMode::Replace);
    let rename = |from: &str, to: &str| overlay.rename(root, OsStr::new(from), root, OsStr::new(to), move_to).unwrap();
    rename("dir", "moved");
    assert!(is_whiteout(&upper.join("dir")));
    assert_eq!(get(&upper.join("moved"), "trusted.overlay.redirect").as_deref(), Some("/dir"));
    // A rename to a whiteout, from a name that needs a whiteout and from one that does not.
    rename("other", "dir");
    assert!(is_whiteout(&upper.join("other")) && upper.join("dir").is_dir());
    rename("moved", "other");
    assert!(!test_common::exists(&upper.join("moved")) && upper.join("other").is_dir());
    assert_eq!(
        (read(&overlay, "dir/one").unwrap(), read(&overlay, "other/one").unwrap()),
        ("other/one".into(), "dir/one".into())
    );
    // A rename over a directory that looks empty.
    overlay.unlink(&find(&overlay, "empty").unwrap(), OsStr::new("one")).unwrap();
    rename("dir", "empty");
    assert!(is_whiteout(&upper.join("dir")));
    assert_eq!(read(&overlay, "empty/one").unwrap(), "other/one");
    // A file, a symlink and a link over a whiteout.
    rename("file", "kept");
    let link = find(&overlay, "kept").unwrap();
    overlay.link(&link, root, OsStr::new("file")).unwrap();
    overlay.create_symlink(root, OsStr::new("dir"), OsStr::new("target"), OWN).unwrap();
    assert_eq!(names(&setup.path("work")), ["numbers", "record"], "nothing is left behind");
    drop(overlay);
    let overlay = self::overlay(&setup, None);
    assert_eq!(read(&overlay, "file").unwrap(), "file");
    assert_eq!(find(&overlay, "dir").unwrap().kind(), Kind::Symlink);
    assert_eq!(read(&overlay, "other/one").unwrap(), "dir/one");
    assert_eq!(errno(find(&overlay, "moved")), ENOENT);
}

#[test]
fn data_are_found_below_metacopies() {
    let setup = Setup::new();
    let (lower, bottom) = (setup.dir("lower"), setup.dir("bottom"));
    for file in ["same", "dir/target", "dir/sibling", "gone"] {
        put::file(&bottom, file, file);
    }
    put::file(&bottom, "dir/large", vec![b'x'; 3 << 20]);
    metacopy(&lower, "same", 4, None);
    metacopy(&lower, "large", 3 << 20, Some("/dir/large"));
    metacopy(&lower, "path", 10, Some("/dir/target"));
    metacopy(&lower, "moved/beside", 11, Some("sibling"));
    set(&lower.join("moved"), "trusted.overlay.redirect", "/dir");
    metacopy(&lower, "gone", 4, Some("/nowhere"));
    metacopy(&lower, "dir", 4, None);
    metacopy(&lower, "opaque/file", 4, None);
    put::file(&bottom, "opaque/file", "data");
    set(&lower.join("opaque"), "trusted.overlay.opaque", "y");
    metacopy(&lower, "bad", 4, Some("same"));
    set(&lower.join("bad"), "trusted.overlay.redirect", "/../same");

    let overlay = overlay(&setup, None);
    for (path, data) in [("same", "same"), ("path", "dir/target"), ("moved/beside", "dir/sibling")] {
        assert_eq!(read(&overlay, path).unwrap(), data, "{path}");
        assert_eq!(overlay.stat(&find(&overlay, path).unwrap()).unwrap().size, data.len() as u64);
    }
    // A partial copy of a large file takes the data from the file below the metacopy.
    let large = find(&overlay, "large").unwrap();
    overlay.write_at(&overlay.open(&large), b"y", 1 << 20).unwrap();
    let mut bytes = vec![0; 3];
    overlay.read_at(&overlay.open(&large), &mut bytes, (1 << 20) - 1).unwrap();
    assert_eq!(bytes, b"xyx");
    for path in ["gone", "dir", "opaque/file", "bad"] {
        assert_eq!(errno(read(&overlay, path)), EIO, "{path}");
        assert_eq!(errno(overlay.write_at(&overlay.open(&find(&overlay, path).unwrap()), b"x", 0)), EIO, "{path}");
    }
    let path = overlay.open(&find(&overlay, "path").unwrap());
    overlay.write_at(&path, b"DIR", 0).unwrap();
    drop(path);
    drop(overlay);
    let mut expected = vec![b'x'; 3 << 20];
    expected[1 << 20] = b'y';
    assert!(fs::read(setup.path("upper/large")).unwrap() == expected);
    assert_eq!(fs::read(setup.path("upper/path")).unwrap(), b"DIR/target");
    assert_eq!(get(&setup.path("upper/path"), "trusted.overlay.metacopy"), None);
}

/// An upper metacopy gets its data before it loses its mark. After a crash in between, reads still
/// go to the file below.
#[test]
fn an_upper_metacopy_is_completed() {
    let setup = Setup::new();
    put::file(&setup.dir("bottom"), "file", "content");
    put::file(&setup.dir("bottom"), "cut", "content");
    set(&setup.dir("upper"), "trusted.overlay.uuid", "0123456789abcdef");
    let file = metacopy(&setup.path("upper"), "file", 7, None);
    let cut = metacopy(&setup.path("upper"), "cut", 7, None);
    fs::write(&file, "con").unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len(7).unwrap();
    let overlay = overlay(&setup, None);
    assert_eq!(read(&overlay, "file").unwrap(), "content");
    let handle = overlay.open(&find(&overlay, "file").unwrap());
    overlay.write_at(&handle, b"T", 3).unwrap();
    assert_eq!(read(&overlay, "file").unwrap(), "conTent");
    overlay.truncate(&find(&overlay, "cut").unwrap(), 3).unwrap();
    assert_eq!(read(&overlay, "cut").unwrap(), "con");
    for path in [&file, &cut] {
        assert_eq!(get(path, "trusted.overlay.metacopy"), None);
    }
    assert_eq!((fs::read(file).unwrap(), fs::read(cut).unwrap()), (b"conTent".to_vec(), b"con".to_vec()));
}

/// In the OCI format a device with the number 0 is a whiteout of fuse-overlayfs, until a user makes
/// such a device.
#[test]
fn devices_are_deletions_until_one_is_made() {
    let setup = Setup::new();
    let (lower, upper) = (setup.dir("lower"), setup.dir("upper"));
    for file in ["gone", "again", "dir/gone", "unseen/gone"] {
        put::file(&lower, file, file);
    }
    for name in ["gone", "again", "nothing", "dir/gone", "unseen/gone"] {
        put::node(&upper, name, FileType::CharacterDevice, 0o600, 0);
    }
    put::node(&upper, "null", FileType::CharacterDevice, 0o666, 0x103);
    let guard = LowerGuard::new([lower]);
    let overlay = self::overlay(&setup, None);
    let root = overlay.root().clone();
    for path in ["gone", "again", "nothing", "dir/gone"] {
        assert_eq!(errno(find(&overlay, path)), ENOENT, "{path}");
    }
    assert_eq!(find(&overlay, "null").unwrap().kind(), Kind::CharDev);
    assert_eq!(names(&upper.join("dir")), [".wh.gone"], "a marker, as soon as it is read");
    assert!(is_whiteout(&upper.join("unseen/gone")), "no mount has read it");
    drop(overlay.create_file(&root, OsStr::new("again"), 0o600, OWN).unwrap());

    let device = |overlay: &Overlay<OsLayer>, name: &str| {
        overlay.create_node(overlay.root(), OsStr::new(name), Kind::CharDev, 0o600, 0, OWN)
    };
    device(&overlay, "device").unwrap();
    assert!(is_whiteout(&upper.join("device")) && test_common::exists(&upper.join(".wh..wh.devices")));
    assert_eq!(names(&upper.join("unseen")), [".wh.gone"]);
    overlay.rename(&root, OsStr::new("again"), &root, OsStr::new("moved"), RenameMode::Whiteout).unwrap();
    drop(overlay);
    for turn in 0..2 {
        // The second time the layer is a lower one.
        let mut options = self::options(&setup, None);
        if turn == 1 {
            options.lowers.insert(0, upper.clone());
            options.upper = Some(setup.dir("second"));
            options.work = Some(setup.dir("second-work"));
        }
        let overlay = mount(&options).unwrap();
        for path in ["gone", "nothing", "dir/gone", "unseen/gone"] {
            assert_eq!(errno(find(&overlay, path)), ENOENT, "{path}");
        }
        for name in ["device", "again"] {
            let node = find(&overlay, name).unwrap();
            assert_eq!(node.kind(), Kind::CharDev, "{name}");
            overlay.set_mode(&node, 0o640).unwrap();
        }
    }
    assert!(is_whiteout(&setup.path("second/device")) && test_common::exists(&setup.path("second/.wh..wh.devices")));
    guard.check();
}
