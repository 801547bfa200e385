//! A bug that panics costs the request that met it, not the daemon.

use std::ffi::{OsStr, OsString};
use std::ops::Range;

use overlayfs::layer::linux::LinuxLayer;
use overlayfs::layer::{
    Access, Allocation, Capabilities, Entry, Kind, Layer, Object, Owner, RenameMode, Result, Stat, StatFs, Time,
    XattrMode,
};
use overlayfs::overlay::{self, Overlay};
use syscall::error::EIO;
use syscall::flag::{O_RDONLY, O_STAT};

use crate::layers::Layers;
use crate::support::{Stage, refused, root};

/// A layer with a bug: to open a file named `mine` panics.
struct Mined(LinuxLayer);

/// The layer inside does all calls but the one above.
macro_rules! hand_on {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> $answer {
            self.0.$name($($argument),*)
        })*
    };
}

fn inner(object: Object<'_, Mined>) -> Object<'_, LinuxLayer> {
    match object {
        Object::Dir(dir) => Object::Dir(dir),
        Object::Entry(dir, name) => Object::Entry(dir, name),
        Object::File(file) => Object::File(file),
    }
}

impl Layer for Mined {
    type Dir = <LinuxLayer as Layer>::Dir;
    type File = <LinuxLayer as Layer>::File;

    fn open_file(&self, dir: &Self::Dir, name: &OsStr, access: Access) -> Result<Self::File> {
        assert_ne!(name, "mine", "stepped on it");
        self.0.open_file(dir, name, access)
    }

    fn stat(&self, object: Object<'_, Self>) -> Result<Stat> {
        self.0.stat(inner(object))
    }

    fn set_owner(&self, object: Object<'_, Self>, owner: Owner) -> Result<()> {
        self.0.set_owner(inner(object), owner)
    }

    fn set_mode(&self, object: Object<'_, Self>, mode: u32) -> Result<()> {
        self.0.set_mode(inner(object), mode)
    }

    fn set_times(&self, object: Object<'_, Self>, atime: Time, mtime: Time) -> Result<()> {
        self.0.set_times(inner(object), atime, mtime)
    }

    fn birth(&self, object: Object<'_, Self>) -> Result<Option<Time>> {
        self.0.birth(inner(object))
    }

    fn xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<Vec<u8>> {
        self.0.xattr(inner(object), name)
    }

    fn set_xattr(&self, object: Object<'_, Self>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        self.0.set_xattr(inner(object), name, value, mode)
    }

    fn remove_xattr(&self, object: Object<'_, Self>, name: &OsStr) -> Result<()> {
        self.0.remove_xattr(inner(object), name)
    }

    fn xattrs(&self, object: Object<'_, Self>) -> Result<Vec<OsString>> {
        self.0.xattrs(inner(object))
    }

    hand_on! {
        fn capabilities() -> Capabilities;
        fn identity() -> Owner;
        fn root() -> Result<Self::Dir>;
        fn hold() -> Result<()>;
        fn stat_fs() -> Result<StatFs>;
        fn open_dir(dir: &Self::Dir, name: &OsStr) -> Result<Self::Dir>;
        fn list(dir: &Self::Dir, each: &mut dyn FnMut(Entry<'_>)) -> Result<()>;
        fn creates_as(owner: Owner) -> bool;
        fn create_file(dir: &Self::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<Self::File>;
        fn create_dir(dir: &Self::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<()>;
        fn create_symlink(dir: &Self::Dir, name: &OsStr, target: &OsStr, owner: Owner) -> Result<()>;
        fn create_node(dir: &Self::Dir, name: &OsStr, kind: Kind, mode: u32, rdev: u64, owner: Owner) -> Result<()>;
        fn read_link(dir: &Self::Dir, name: &OsStr) -> Result<OsString>;
        fn link(dir: &Self::Dir, name: &OsStr, new_dir: &Self::Dir, new_name: &OsStr) -> Result<()>;
        fn unlink(dir: &Self::Dir, name: &OsStr) -> Result<()>;
        fn remove_dir(dir: &Self::Dir, name: &OsStr) -> Result<()>;
        fn rename(dir: &Self::Dir, name: &OsStr, new_dir: &Self::Dir, new_name: &OsStr, mode: RenameMode) -> Result<()>;
        fn read_at(file: &Self::File, buf: &mut [u8], offset: u64) -> Result<usize>;
        fn write_at(file: &Self::File, buf: &[u8], offset: u64) -> Result<usize>;
        fn truncate(file: &Self::File, size: u64) -> Result<()>;
        fn sync(file: &Self::File) -> Result<()>;
        fn sync_dir(dir: &Self::Dir) -> Result<()>;
        fn next_data(file: &Self::File, from: u64) -> Result<Option<Range<u64>>>;
        fn copy_range(from: &Self::File, range: Range<u64>, to: &Self::File, offset: u64) -> Result<u64>;
        fn write_through(file: &Self::File, buf: &[u8], offset: u64) -> Result<()>;
        fn share_data(from: &Self::File, to: &Self::File) -> Result<()>;
        fn epoch() -> Option<u128>;
        fn allocate(file: &Self::File, how: Allocation, range: Range<u64>) -> Result<()>;
        fn sync_all() -> Result<()>;
    }
}

#[test]
fn a_panic_costs_one_request() {
    let layers = Layers::new();
    layers.lower().write("mine", "unreadable");
    layers.lower().write("field", "fine");
    let (lower, upper) = layers.open(|path, for_writing| Mined(LinuxLayer::open(path, for_writing).unwrap()));
    let overlay = Overlay::new(overlay::Layers { upper: Some(upper), work: None, lowers: vec![lower] });
    let stage = Stage::serve(overlay.unwrap(), layers);

    let mine = stage.open(&root(), "mine", O_RDONLY).unwrap();
    for _ in 0..3 {
        assert_eq!(mine.read(&mut [0; 8]), refused(EIO));
        assert_eq!(mine.fstat().unwrap().st_size, 10);
        assert_eq!(stage.content("field"), "fine");
    }
    drop(mine);
    stage.open(&root(), "mine", O_STAT).unwrap();
    root().write_file(stage.path("field"), "still fine").unwrap();
    assert_eq!(stage.content("field"), "still fine");
}
