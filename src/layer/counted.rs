//! A layer that counts its backing calls, for benchmarks and tests, and that can stop after any of them, or have something done before.
//!
//! One [`Counts`] can be shared by all layers of an overlay. Directories and files are those of the layer inside, so
//! counted layers can be mixed as plain ones can.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use syscall::error::EIO;

use super::{
    Access, Allocation, Capabilities, Entry, Error, Kind, Layer, Object, Owner, RenameMode, Result, Stat, StatFs, Time,
    XattrMode,
};

/// A layer whose calls are counted.
pub struct Counted<L> {
    inner: L,
    counts: Counts,
}

impl<L: Layer> Counted<L> {
    /// Counts the calls of `inner` in `counts`.
    pub fn new(inner: L, counts: &Counts) -> Self {
        Counted { inner, counts: counts.clone() }
    }
}

/// Counters that several layers may share; a clone counts in the same place.
#[derive(Clone)]
pub struct Counts(Arc<Shared>);

struct Shared {
    calls: [AtomicU64; Method::ALL.len()],
    /// How many more calls are made.
    left: AtomicU64,
    before: RwLock<Option<Before>>,
}

type Before = Box<dyn Fn(Method) -> Result<()> + Send + Sync>;

impl Default for Counts {
    fn default() -> Self {
        let calls = std::array::from_fn(|_| AtomicU64::new(0));
        Counts(Arc::new(Shared { calls, left: AtomicU64::new(u64::MAX), before: RwLock::new(None) }))
    }
}

impl Counts {
    /// What was counted since the start or the last [`Counts::take`].
    pub fn tally(&self) -> Tally {
        Tally(std::array::from_fn(|index| self.0.calls[index].load(Ordering::Relaxed)))
    }

    /// As [`Counts::tally`], and starts again at zero.
    pub fn take(&self) -> Tally {
        Tally(std::array::from_fn(|index| self.0.calls[index].swap(0, Ordering::Relaxed)))
    }

    /// All calls since the start or the last [`Counts::take`].
    pub fn total(&self) -> u64 {
        self.tally().total()
    }

    /// After so many more calls the layers do nothing and answer EIO, as if the daemon had ended there.
    pub fn stop_after(&self, calls: u64) {
        self.0.left.store(calls, Ordering::Relaxed);
    }

    /// From now on `before` is called before each call, in the thread that makes it. Its error is the answer, and the call is not made.
    pub fn interpose(&self, before: impl Fn(Method) -> Result<()> + Send + Sync + 'static) {
        *self.0.before.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(before));
    }

    /// Counts a call. EIO if it is not to be made.
    fn add(&self, method: Method) -> Result<()> {
        let left = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        if self.0.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).is_err() {
            return Err(Error::new(EIO));
        }
        self.0.calls[method as usize].fetch_add(1, Ordering::Relaxed);
        match &*self.0.before.read().unwrap_or_else(PoisonError::into_inner) {
            Some(before) => before(method),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tally().fmt(f)
    }
}

/// How many calls of each method were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally([u64; Method::ALL.len()]);

impl Tally {
    /// Calls of one method.
    pub fn of(&self, method: Method) -> u64 {
        self.0[method as usize]
    }

    /// Calls of all methods.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// The total and the methods that were called at all: `3 (stat 2, rename 1)`.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.total())?;
        let mut separator = " (";
        for method in Method::ALL.iter().filter(|&&method| self.of(method) > 0) {
            write!(f, "{separator}{} {}", method.name(), self.of(*method))?;
            separator = ", ";
        }
        if self.total() > 0 { f.write_str(")") } else { Ok(()) }
    }
}

/// Defines [`Method`] and the layer that counts, from a list of the calls. An argument named `object` is handed on as
/// an object of the layer inside.
macro_rules! counted {
    ($($method:ident: fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        /// A method of [`Layer`] that is a backing call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Method {
            $($method,)*
        }

        impl Method {
            /// Every method.
            pub const ALL: &[Method] = &[$(Method::$method,)*];

            /// The method's name in the trait.
            pub fn name(self) -> &'static str {
                match self {
                    $(Method::$method => stringify!($name),)*
                }
            }
        }

        impl<L: Layer> Layer for Counted<L> {
            type Dir = L::Dir;
            type File = L::File;

            fn capabilities(&self) -> Capabilities {
                self.inner.capabilities()
            }

            fn identity(&self) -> Owner {
                self.inner.identity()
            }

            fn creates_as(&self, owner: Owner) -> bool {
                self.inner.creates_as(owner)
            }

            fn epoch(&self) -> Option<u128> {
                self.inner.epoch()
            }

            $(fn $name(&self, $($argument: $type),*) -> $answer {
                self.counts.add(Method::$method)?;
                self.inner.$name($(hand_on!($argument $argument)),*)
            })*
        }
    };
}

/// An argument, given as its name and itself, as the layer inside takes it.
macro_rules! hand_on {
    (object $argument:ident) => {
        inner_object($argument)
    };
    ($name:ident $argument:ident) => {
        $argument
    };
}

counted! {
    Root: fn root() -> Result<L::Dir>;
    Hold: fn hold() -> Result<()>;
    StatFs: fn stat_fs() -> Result<StatFs>;
    OpenDir: fn open_dir(dir: &L::Dir, name: &OsStr) -> Result<L::Dir>;
    List: fn list(dir: &L::Dir, each: &mut dyn FnMut(Entry<'_>)) -> Result<()>;
    Stat: fn stat(object: Object<'_, Self>) -> Result<Stat>;
    SetOwner: fn set_owner(object: Object<'_, Self>, owner: Owner) -> Result<()>;
    SetMode: fn set_mode(object: Object<'_, Self>, mode: u32) -> Result<()>;
    SetTimes: fn set_times(object: Object<'_, Self>, atime: Time, mtime: Time) -> Result<()>;
    Birth: fn birth(object: Object<'_, Self>) -> Result<Option<Time>>;
    Xattr: fn xattr(object: Object<'_, Self>, name: &OsStr) -> Result<Vec<u8>>;
    SetXattr: fn set_xattr(object: Object<'_, Self>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()>;
    RemoveXattr: fn remove_xattr(object: Object<'_, Self>, name: &OsStr) -> Result<()>;
    Xattrs: fn xattrs(object: Object<'_, Self>) -> Result<Vec<OsString>>;
    OpenFile: fn open_file(dir: &L::Dir, name: &OsStr, access: Access) -> Result<L::File>;
    CreateFile: fn create_file(dir: &L::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<L::File>;
    CreateDir: fn create_dir(dir: &L::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<()>;
    CreateSymlink: fn create_symlink(dir: &L::Dir, name: &OsStr, target: &OsStr, owner: Owner) -> Result<()>;
    CreateNode:
        fn create_node(dir: &L::Dir, name: &OsStr, kind: Kind, mode: u32, rdev: u64, owner: Owner) -> Result<()>;
    ReadLink: fn read_link(dir: &L::Dir, name: &OsStr) -> Result<OsString>;
    Link: fn link(dir: &L::Dir, name: &OsStr, new_dir: &L::Dir, new_name: &OsStr) -> Result<()>;
    Unlink: fn unlink(dir: &L::Dir, name: &OsStr) -> Result<()>;
    RemoveDir: fn remove_dir(dir: &L::Dir, name: &OsStr) -> Result<()>;
    Rename: fn rename(dir: &L::Dir, name: &OsStr, new_dir: &L::Dir, new_name: &OsStr, mode: RenameMode) -> Result<()>;
    ReadAt: fn read_at(file: &L::File, buf: &mut [u8], offset: u64) -> Result<usize>;
    WriteAt: fn write_at(file: &L::File, buf: &[u8], offset: u64) -> Result<usize>;
    WriteThrough: fn write_through(file: &L::File, buf: &[u8], offset: u64) -> Result<()>;
    Truncate: fn truncate(file: &L::File, size: u64) -> Result<()>;
    Sync: fn sync(file: &L::File) -> Result<()>;
    SyncDir: fn sync_dir(dir: &L::Dir) -> Result<()>;
    NextData: fn next_data(file: &L::File, from: u64) -> Result<Option<Range<u64>>>;
    CopyRange: fn copy_range(from: &L::File, range: Range<u64>, to: &L::File, offset: u64) -> Result<u64>;
    ShareData: fn share_data(from: &L::File, to: &L::File) -> Result<()>;
    Allocate: fn allocate(file: &L::File, how: Allocation, range: Range<u64>) -> Result<()>;
    SyncAll: fn sync_all() -> Result<()>;
}

/// The same object, of the layer inside.
fn inner_object<L: Layer>(object: Object<'_, Counted<L>>) -> Object<'_, L> {
    match object {
        Object::Dir(dir) => Object::Dir(dir),
        Object::Entry(dir, name) => Object::Entry(dir, name),
        Object::File(file) => Object::File(file),
    }
}
