//! A layer that counts its backing calls. For benchmarks and tests it can also stop or fail at any
//! call, or run a function before it.
//!
//! All layers of an overlay can share one [`Counts`]. Directories and files are those of the inner
//! layer, so counted layers work together as plain ones do.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::errno::EIO;

use super::{
    Access, Allocation, Capabilities, DirEntry, Error, Kind, Layer, Object, Owner, RenameMode, Result, Stat, StatFs,
    Time, XattrMode,
};
use crate::turn;

/// A layer with counted calls.
pub struct Counted<L, C = Counts> {
    inner: L,
    counts: C,
}

impl<L: Layer, C: Counter> Counted<L, C> {
    /// Counts the calls of `inner` in `counts`.
    pub fn new(inner: L, counts: &C) -> Self
    where
        C: Clone,
    {
        Counted { inner, counts: counts.clone() }
    }

    /// The layer whose calls are counted.
    pub(super) fn inner(&self) -> &L {
        &self.inner
    }
}

/// Counts backing calls.
pub trait Counter: Sized + Send + Sync + 'static {
    /// Counts a call before it is made. Returns whether it may write only half of its bytes.
    ///
    /// # Errors
    ///
    /// The error that the call must return, and do nothing.
    fn add(&self, method: Method) -> Result<bool>;

    /// Returns the counts so far.
    fn so_far(&self) -> Tally;

    /// Returns the counter of another layer that is opened below this one.
    fn of_another(&self) -> Self;
}

/// Counters of one layer, which do nothing else.
#[derive(Clone, Debug)]
pub struct Calls(Arc<[AtomicU64; Method::ALL.len()]>);

impl Default for Calls {
    fn default() -> Self {
        Self(Arc::new([const { AtomicU64::new(0) }; Method::ALL.len()]))
    }
}

impl Counter for Calls {
    fn add(&self, method: Method) -> Result<bool> {
        self.0[method as usize].fetch_add(1, Ordering::Relaxed);
        Ok(false)
    }

    fn so_far(&self) -> Tally {
        Tally(std::array::from_fn(|index| self.0[index].load(Ordering::Relaxed)))
    }

    fn of_another(&self) -> Self {
        Self::default()
    }
}

/// Counters that several layers may share. A clone counts in the same place.
#[derive(Clone)]
pub struct Counts(Arc<Shared>);

struct Shared {
    calls: [AtomicU64; Method::ALL.len()],
    /// The number of calls until the fault.
    left: AtomicU64,
    fault: RwLock<Fault>,
    /// The method with the fault, as its number plus one. 0 without a fault.
    struck: AtomicUsize,
    before: RwLock<Option<Before>>,
}

/// The fault of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// From then on each call returns EIO and does nothing, as if the daemon had ended there.
    Stop,
    /// The call returns this errno and does nothing. Later calls work.
    Errno(i32),
    /// The call, if it is a write, writes only half of the bytes. Later calls work.
    ShortWrite,
}

type Before = Box<dyn Fn(Method) -> Result<()> + Send + Sync>;

impl Default for Counts {
    fn default() -> Self {
        let calls = std::array::from_fn(|_| AtomicU64::new(0));
        let (left, fault) = (AtomicU64::new(u64::MAX), RwLock::new(Fault::Stop));
        Counts(Arc::new(Shared { calls, left, fault, struck: AtomicUsize::new(0), before: RwLock::new(None) }))
    }
}

impl Counts {
    /// Returns the counts since the start or the last [`Counts::take`].
    pub fn tally(&self) -> Tally {
        Tally(std::array::from_fn(|index| self.0.calls[index].load(Ordering::Relaxed)))
    }

    /// Does the same as [`Counts::tally`], then starts again at zero.
    pub fn take(&self) -> Tally {
        Tally(std::array::from_fn(|index| self.0.calls[index].swap(0, Ordering::Relaxed)))
    }

    /// Returns the number of calls since the start or the last [`Counts::take`].
    pub fn total(&self) -> u64 {
        self.tally().total()
    }

    /// Makes all calls after this many more return EIO and do nothing, as if the daemon had ended
    /// there. `u64::MAX` means no fault.
    pub fn stop_after(&self, calls: u64) {
        self.fault_after(calls, Fault::Stop);
    }

    /// Makes the call after this many more have the fault. `u64::MAX` means no fault.
    pub fn fault_after(&self, calls: u64, fault: Fault) {
        *self.0.fault.write().unwrap_or_else(PoisonError::into_inner) = fault;
        self.0.struck.store(0, Ordering::Relaxed);
        self.0.left.store(calls, Ordering::Relaxed);
    }

    /// Returns the method that had a fault since the last [`Counts::fault_after`].
    pub fn struck(&self) -> Option<Method> {
        let struck = self.0.struck.load(Ordering::Relaxed);
        struck.checked_sub(1).map(|index| Method::ALL[index])
    }

    /// Calls `before` before each call from now on, in the thread that makes the call. If it
    /// returns an error, the call returns that and does nothing.
    pub fn interpose(&self, before: impl Fn(Method) -> Result<()> + Send + Sync + 'static) {
        *self.0.before.write().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(before));
    }
}

impl Counter for Counts {
    fn add(&self, method: Method) -> Result<bool> {
        let left = |left: u64| if left == u64::MAX { Some(left) } else { left.checked_sub(1) };
        let fault = match self.0.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left) {
            Ok(_) => None,
            Err(_) => Some(*self.0.fault.read().unwrap_or_else(PoisonError::into_inner)),
        };
        if fault.is_some() {
            // Calls after a stop do not count.
            let _ = self.0.struck.compare_exchange(0, method as usize + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        match fault {
            Some(Fault::Stop) => return Err(Error::new(EIO)),
            Some(_) => self.0.left.store(u64::MAX, Ordering::Relaxed),
            None => {}
        }
        self.0.calls[method as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(Fault::Errno(errno)) = fault {
            return Err(Error::new(errno));
        }
        // The function may take any time.
        turn::pass();
        if let Some(before) = &*self.0.before.read().unwrap_or_else(PoisonError::into_inner) {
            before(method)?;
        }
        Ok(fault == Some(Fault::ShortWrite))
    }

    fn so_far(&self) -> Tally {
        self.tally()
    }

    fn of_another(&self) -> Self {
        self.clone()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tally().fmt(f)
    }
}

/// The counted calls of each method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally([u64; Method::ALL.len()]);

impl Tally {
    /// Returns the calls of one method.
    pub fn of(&self, method: Method) -> u64 {
        self.0[method as usize]
    }

    /// Returns the calls of all methods.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// The total, and each method with calls: `3 (stat 2, rename 1)`.
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

/// Defines [`Method`] and the counting layer from a list of the calls. An argument named `object`
/// becomes an object of the inner layer. One named `taken` may be shortened.
macro_rules! counted {
    ($($method:ident: fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        /// A method of [`Layer`] that is a backing call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Method {
            $(#[doc = concat!("[`Layer::", stringify!($name), "`].")]
            $method,)*
        }

        impl Method {
            /// Every method.
            pub const ALL: &[Method] = &[$(Method::$method,)*];

            /// Returns the method's name in the trait.
            pub fn name(self) -> &'static str {
                match self {
                    $(Method::$method => stringify!($name),)*
                }
            }
        }

        impl<L: Layer, C: Counter> Layer for Counted<L, C> {
            type Dir = L::Dir;
            type File = L::File;

            fn capabilities(&self) -> Capabilities {
                self.inner.capabilities()
            }

            fn identity(&self) -> Owner {
                self.inner.identity()
            }

            fn may_set_attributes(&self, file: &L::File) -> bool {
                self.inner.may_set_attributes(file)
            }

            fn creates_as(&self, owner: Owner) -> bool {
                self.inner.creates_as(owner)
            }

            fn tries_to_create_as(&self, owner: Owner) -> bool {
                self.inner.tries_to_create_as(owner)
            }

            fn epoch(&self) -> Option<u128> {
                self.inner.epoch()
            }

            fn path(&self) -> Option<&Path> {
                self.inner.path()
            }

            fn below(&self, dir: &L::Dir, path: &Path, for_writing: bool) -> Result<Self> {
                self.counts.add(Method::OpenDir)?;
                Ok(Counted { inner: self.inner.below(dir, path, for_writing)?, counts: self.counts.of_another() })
            }

            fn attr_of_new(&self, file: &L::File) -> Option<Stat> {
                self.inner.attr_of_new(file)
            }

            fn descriptor<'a>(&self, file: &'a L::File) -> Option<BorrowedFd<'a>> {
                self.inner.descriptor(file)
            }

            fn calls(&self) -> Option<Tally> {
                Some(self.counts.so_far())
            }

            $(fn $name(&self, $($argument: $type),*) -> $answer {
                let _is_short = self.counts.add(Method::$method)?;
                self.inner.$name($(hand_on!($argument $argument _is_short)),*)
            })*

            fn rename_file(
                &self,
                file: &L::File,
                from: (&L::Dir, &OsStr),
                to: (&L::Dir, &OsStr),
                mode: RenameMode,
            ) -> Result<()> {
                self.counts.add(Method::Rename)?;
                self.inner.rename_file(file, from, to, mode)
            }
        }
    };
}

/// Converts an argument, given as its name and itself, for the inner layer. The last argument says
/// whether a write is shortened.
macro_rules! hand_on {
    (object $argument:ident $is_short:ident) => {
        inner_object($argument)
    };
    (taken $argument:ident $is_short:ident) => {
        if $is_short { &$argument[..$argument.len().div_ceil(2)] } else { $argument }
    };
    ($name:ident $argument:ident $is_short:ident) => {
        $argument
    };
}

counted! {
    Root: fn root() -> Result<L::Dir>;
    Hold: fn hold() -> Result<()>;
    HoldBy: fn hold_by(dir: &L::Dir, name: &OsStr) -> Result<()>;
    Release: fn release() -> Result<()>;
    StatFs: fn stat_fs() -> Result<StatFs>;
    OpenDir: fn open_dir(dir: &L::Dir, name: &OsStr) -> Result<L::Dir>;
    List: fn list(dir: &L::Dir, each: &mut dyn FnMut(DirEntry<'_>)) -> Result<()>;
    Stat: fn stat(object: Object<'_, Self>) -> Result<Stat>;
    SetOwner: fn set_owner(object: Object<'_, Self>, owner: Owner) -> Result<()>;
    SetMode: fn set_mode(object: Object<'_, Self>, mode: u32) -> Result<()>;
    SetTimes: fn set_times(object: Object<'_, Self>, atime: Time, mtime: Time) -> Result<()>;
    Birth: fn birth(object: Object<'_, Self>) -> Result<Option<Time>>;
    Xattr: fn xattr(object: Object<'_, Self>, name: &OsStr) -> Result<Vec<u8>>;
    SetXattr: fn set_xattr(object: Object<'_, Self>, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()>;
    RemoveXattr: fn remove_xattr(object: Object<'_, Self>, name: &OsStr) -> Result<()>;
    Xattrs: fn xattrs(object: Object<'_, Self>) -> Result<Vec<OsString>>;
    Flags: fn flags(object: Object<'_, Self>) -> Result<u32>;
    SetFlags: fn set_flags(object: Object<'_, Self>, flags: u32) -> Result<()>;
    OpenFile: fn open_file(dir: &L::Dir, name: &OsStr, access: Access) -> Result<L::File>;
    CreateFile: fn create_file(dir: &L::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<L::File>;
    CreateDir: fn create_dir(dir: &L::Dir, name: &OsStr, mode: u32, owner: Owner) -> Result<Option<Stat>>;
    CreateEmpty: fn create_empty(dir: &L::Dir, name: &OsStr) -> Result<()>;
    CreateSymlink:
        fn create_symlink(dir: &L::Dir, name: &OsStr, target: &OsStr, owner: Owner) -> Result<Option<Stat>>;
    CreateNode:
        fn create_node(
            dir: &L::Dir, name: &OsStr, kind: Kind, mode: u32, rdev: u64, owner: Owner
        ) -> Result<Option<Stat>>;
    ReadLink: fn read_link(dir: &L::Dir, name: &OsStr) -> Result<OsString>;
    Link: fn link(object: Object<'_, Self>, new_dir: &L::Dir, new_name: &OsStr) -> Result<()>;
    Unlink: fn unlink(dir: &L::Dir, name: &OsStr) -> Result<()>;
    RemoveDir: fn remove_dir(dir: &L::Dir, name: &OsStr) -> Result<()>;
    Rename: fn rename(dir: &L::Dir, name: &OsStr, new_dir: &L::Dir, new_name: &OsStr, mode: RenameMode) -> Result<()>;
    ReadAt: fn read_at(file: &L::File, buf: &mut [u8], offset: u64) -> Result<usize>;
    WriteAt: fn write_at(file: &L::File, taken: &[u8], offset: u64) -> Result<usize>;
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

/// Returns the same object as one of the inner layer.
fn inner_object<L: Layer, C: Counter>(object: Object<'_, Counted<L, C>>) -> Object<'_, L> {
    match object {
        Object::Dir(dir) => Object::Dir(dir),
        Object::Entry(dir, name) => Object::Entry(dir, name),
        Object::File(file) => Object::File(file),
    }
}
