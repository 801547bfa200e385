//! Makes the objects of one archive in an empty directory, which then is a lower layer.
//!
//! The unpacked form of an OCI layer is the native format of layers, so whiteouts stay what they
//! are. Every step is a call of [`Layer`] on a directory and one name: it follows no symlink and
//! leaves the directory nowhere.
//!
//! A directory gets its mode, attributes and times when the unpacking leaves it. Until then its
//! owner alone may use it, and what is made in it inherits nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::io::BufRead;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::errno::{self, EEXIST, ENODATA, ENOENT, EOPNOTSUPP, EPERM};
use crate::format::{self, Meaning, attribute};
use crate::layer::{
    self, Access, Kind, Layer, Object, Owner, Time, XattrMode, acl, ensure_file, read_start, write_all,
};
use crate::layer_tools::archive::acl_text::{self, Account, Wrong};
use crate::layer_tools::archive::read::Reader;
use crate::layer_tools::archive::{self, LABEL, Member, MemberKind};
use crate::layer_tools::{Error, Progress, Watch};
use crate::overlay::on_disk::{LayerDir, Stack, remove_tree};

/// The longest path of a member, in bytes. No system call takes a longer one.
const PATH_MAX: usize = 4096;

/// The most bytes of a list of accounts that are read.
const ACCOUNTS_MAX: usize = 1 << 20;

/// The mode of a file and of a directory while it is made.
const PRIVATE: u32 = 0o600;
const PRIVATE_DIR: u32 = 0o700;

/// The wishes of the user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Devices are left out.
    pub no_devices: bool,
    /// All objects get this owner and no set-id bits, instead of the owners that the archive says.
    pub owner: Option<Owner>,
    /// What only root may set is left out.
    pub rootless: bool,
    /// The most bytes of an archive, and of its files with their holes. None: the free space.
    pub limit: Option<u64>,
}

/// The objects that a layer lacks, and the reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Devices.
    pub devices: u64,
    /// Extended attributes.
    pub attributes: u64,
    /// Objects that belong to other programs: reserved names without a meaning in OCI.
    pub reserved: u64,
}

/// An unpacking.
pub struct Unpacking<'a, L: Layer> {
    stack: Stack<L>,
    wishes: Wishes,
    watch: &'a dyn Watch,
    /// The directories from the top to that of the last member.
    open: Vec<Level<L>>,
    /// Digests of the paths of all whiteouts. An object rarely has the name of one, so its
    /// directory is only asked then.
    whiteouts: HashSet<u64>,
    digests: RandomState,
    /// The bytes of files that are still permitted.
    room: u64,
    limit: u64,
    name_max: usize,
    left_out: LeftOut,
    /// The numbers of the names that ACLs have.
    accounts: HashMap<(Account, String), u32>,
}

/// A directory on the way, and what it gets when the unpacking leaves it.
struct Level<L: Layer> {
    name: OsString,
    dir: Arc<LayerDir<L>>,
    finish: Finish,
}

/// The attributes that a directory gets last.
#[derive(Default)]
struct Finish {
    mode: u32,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    atime: Time,
    mtime: Time,
}

/// Unpacks an archive into `layer`, which is empty. Reads `source` to its end.
///
/// # Errors
///
/// - [`Error::At`]: the archive is damaged, has what a layer cannot have, or an object cannot be
///   made. The path is that of the object, or `name`, which stands for the archive.
/// - [`Error::Stopped`]: `watch` wants to stop.
pub fn unpack<L: Layer>(
    layer: L,
    source: impl BufRead,
    name: &Path,
    wishes: Wishes,
    watch: &dyn Watch,
) -> Result<LeftOut, Error> {
    let space = layer.stat_fs().map_err(|error| Error::at("import", name, error))?;
    let limit = wishes.limit.unwrap_or_else(|| space.bytes_available());
    let unreadable = |error| archive_error(name, error);
    let mut reader = Reader::new(source, limit);
    let mut unpacking = Unpacking::new(layer, wishes, watch, limit, space.name_max as usize)
        .map_err(|error| Error::at("import", name, error))?;
    while let Some(member) = reader.next_member().map_err(unreadable)? {
        if watch.wants_stop() {
            return Err(Error::Stopped);
        }
        let made = unpacking.member(&member, &mut reader);
        made.map_err(|failed| failed.at(name, plain(&member.path)))?;
        watch.advance(Progress { objects: 1, bytes: 0 });
    }
    unpacking.leave_to(0).map_err(|failed| failed.at(name, Path::new("")))?;
    let synced = unpacking.stack.top().sync_all();
    synced.map_err(|error| Error::at("sync", name, error))?;
    Ok(unpacking.left_out)
}

/// Converts the error of an archive.
pub fn archive_error(name: &Path, error: archive::Error) -> Error {
    match error {
        archive::Error::Io(error) if super::is_stop(&error) => Error::Stopped,
        archive::Error::Io(error) => Error::at("read", name, error),
        damaged => Error::at("read", name, std::io::Error::other(damaged.to_string())),
    }
}

/// The reason why a member cannot be made.
enum Failed {
    /// A call of the layer.
    Layer(errno::Error),
    /// The archive.
    Archive(archive::Error),
    /// A clause.
    Because(String),
    /// An object other than the member.
    Other(Error),
}

impl Failed {
    fn at(self, archive: &Path, member: &Path) -> Error {
        match self {
            Failed::Layer(error) => Error::in_tree("import", member, error),
            Failed::Archive(error) => archive_error(archive, error),
            Failed::Because(cause) => {
                let member = if member.as_os_str().is_empty() { Path::new(".") } else { member };
                Error::at("import", member, std::io::Error::other(cause))
            }
            Failed::Other(error) => error,
        }
    }
}

impl From<errno::Error> for Failed {
    fn from(error: errno::Error) -> Self {
        Failed::Layer(error)
    }
}

impl From<archive::Error> for Failed {
    fn from(error: archive::Error) -> Self {
        Failed::Archive(error)
    }
}

fn because<T>(cause: impl Into<String>) -> Result<T, Failed> {
    Err(Failed::Because(cause.into()))
}

impl<'a, L: Layer> Unpacking<'a, L> {
    fn new(layer: L, wishes: Wishes, watch: &'a dyn Watch, limit: u64, name_max: usize) -> layer::Result<Self> {
        let stack = Stack::new(vec![layer], true)?;
        let mut unpacking = Unpacking {
            stack,
            wishes,
            watch,
            open: Vec::new(),
            whiteouts: HashSet::new(),
            digests: RandomState::new(),
            room: limit,
            limit,
            name_max,
            left_out: LeftOut::default(),
            accounts: HashMap::new(),
        };
        let root = unpacking.stack.upper_root().cloned().ok_or(errno::Error::new(ENOENT))?;
        let finish = Finish { mode: 0o755, ..Finish::default() };
        unpacking.open.push(Level { name: OsString::new(), dir: root, finish });
        // The directory around it may have handed down an ACL.
        let dir = unpacking.here()?;
        for acl in [acl::DEFAULT, acl::ACCESS] {
            remove_xattr(unpacking.stack.top(), Object::Dir(&*dir), OsStr::new(acl))?;
        }
        Ok(unpacking)
    }

    /// Makes one member.
    fn member<R: BufRead>(&mut self, member: &Member, reader: &mut Reader<R>) -> Result<(), Failed> {
        let path = components(&member.path)?;
        let Some((name, dirs)) = path.split_last() else {
            return match member.kind {
                MemberKind::Dir => self.finish_top(member),
                _ => because("only a directory can be the top of a layer"),
            };
        };
        if path.iter().any(|name| is_of_others(name)) {
            self.left_out.reserved += 1;
            return Ok(());
        }
        if let Some(marker) = dirs.iter().find(|name| format::is_reserved(name)) {
            return because(format!("{} on its path is a whiteout, which has no entries", marker.display()));
        }
        self.enter(dirs)?;
        match format::meaning(name) {
            Meaning::Object => self.object(member, name, reader),
            Meaning::Opaque => {
                let dir = self.here()?;
                Ok(ensure_file(self.stack.top(), &dir, OsStr::new(format::OPAQUE))?)
            }
            Meaning::Whiteout(hidden) if hidden == "." || hidden == ".." => because("it deletes no name"),
            Meaning::Whiteout(hidden) => self.whiteout(hidden),
            // `is_of_others` has these.
            _ => Ok(()),
        }
    }

    fn object<R: BufRead>(&mut self, member: &Member, name: &OsStr, reader: &mut Reader<R>) -> Result<(), Failed> {
        if self.may_be_deleted(name) {
            self.clear_whiteout(name, member.kind == MemberKind::Dir)?;
        }
        match &member.kind {
            MemberKind::Dir => self.dir(member, name),
            MemberKind::File { size, data } => {
                self.reserve(*size)?;
                self.file(member, name, *size, data, reader)
            }
            MemberKind::Link(target) => self.link(name, target),
            MemberKind::Symlink(target) if target.is_empty() => because("its target is empty"),
            MemberKind::Symlink(target) => {
                let make = |layer: &L, dir: &L::Dir, own| layer.create_symlink(dir, name, target, own);
                self.special(member, name, make)
            }
            MemberKind::Fifo => self.node(member, name, Kind::Fifo, 0),
            MemberKind::CharDev(_) | MemberKind::BlockDev(_) if self.wishes.no_devices => {
                self.left_out.devices += 1;
                Ok(())
            }
            MemberKind::CharDev(rdev) => self.device(member, name, Kind::CharDev, *rdev),
            MemberKind::BlockDev(rdev) => self.device(member, name, Kind::BlockDev, *rdev),
        }
    }

    /// Counts a file of `size` bytes.
    fn reserve(&mut self, size: u64) -> Result<(), Failed> {
        match self.room.checked_sub(size) {
            Some(left) => self.room = left,
            None => {
                let limit = self.limit;
                return because(format!(
                    "with its {size} bytes the files of the layer have more than the limit of {limit} bytes"
                ));
            }
        }
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        member: &Member,
        name: &OsStr,
        size: u64,
        data: &[std::ops::Range<u64>],
        reader: &mut Reader<R>,
    ) -> Result<(), Failed> {
        let dir = self.here()?;
        let (layer, own) = (self.stack.top(), self.stack.top().identity());
        // Where no owner is set, no later call is needed for the mode. A write drops set-id bits.
        let mode = if self.owner(member) == own { self.mode(member) & 0o1777 } else { PRIVATE };
        let file = self.replacing(name, || layer.create_file(&dir, name, mode, own))?;
        let layer = self.stack.top();
        for range in data {
            let mut at = range.start;
            while at < range.end {
                let bytes = reader.fill(range.end - at)?;
                write_all(layer, &file, bytes, at)?;
                let count = bytes.len();
                reader.consume(count)?;
                at += count as u64;
                if self.watch.wants_stop() {
                    return Err(Failed::Archive(super::stop().into()));
                }
            }
        }
        if data.last().map_or(0, |range| range.end) < size {
            layer.truncate(&file, size)?;
        }
        self.attributes(Object::File(&file), member, Some(mode))
    }

    /// Makes a symlink or a special object.
    fn special(
        &mut self,
        member: &Member,
        name: &OsStr,
        make: impl Fn(&L, &L::Dir, Owner) -> layer::Result<Option<layer::Stat>>,
    ) -> Result<(), Failed> {
        let dir = self.here()?;
        let own = self.stack.top().identity();
        self.replacing(name, || make(self.stack.top(), &dir, own))?;
        self.attributes(Object::Entry(&*dir, name), member, None)
    }

    fn node(&mut self, member: &Member, name: &OsStr, kind: Kind, rdev: u64) -> Result<(), Failed> {
        self.special(member, name, |layer, dir, own| layer.create_node(dir, name, kind, PRIVATE, rdev, own))
    }

    fn device(&mut self, member: &Member, name: &OsStr, kind: Kind, rdev: u64) -> Result<(), Failed> {
        let made = self.node(member, name, kind, rdev);
        match made {
            Err(Failed::Layer(error)) if matches!(error.errno, EPERM | EOPNOTSUPP) => {
                if !self.wishes.rootless {
                    return because(format!("{error}, since it is a device; --no-devices leaves devices out"));
                }
                self.left_out.devices += 1;
                Ok(())
            }
            Ok(()) if kind == Kind::CharDev && rdev == 0 => {
                // Without the mark it is a deletion.
                let root = self.stack.open(&self.open[0].dir)?;
                Ok(ensure_file(self.stack.top(), &root, OsStr::new(format::DEVICES))?)
            }
            made => made,
        }
    }

    fn dir(&mut self, member: &Member, name: &OsStr) -> Result<(), Failed> {
        let dir = self.here()?;
        let layer = self.stack.top();
        let made = layer.create_dir(&dir, name, PRIVATE_DIR, layer.identity());
        match made {
            Err(error) if error.errno == EEXIST => match layer.stat(Object::Entry(&*dir, name))?.kind {
                Kind::Dir => {
                    self.push(name)?;
                    self.clear_xattrs()?;
                }
                _ => {
                    layer.unlink(&dir, name)?;
                    layer.create_dir(&dir, name, PRIVATE_DIR, layer.identity())?;
                    self.push_new(name);
                }
            },
            made => {
                made?;
                self.push_new(name);
            }
        }
        self.finish_as(member)
    }

    /// Gives the top of the layer the attributes of a member.
    fn finish_top(&mut self, member: &Member) -> Result<(), Failed> {
        self.leave_to(1)?;
        self.clear_xattrs()?;
        self.finish_as(member)
    }

    /// Gives the current directory its owner, and the other attributes later.
    fn finish_as(&mut self, member: &Member) -> Result<(), Failed> {
        let owner = self.owner(member);
        let dir = self.here()?;
        if owner != self.stack.top().identity() {
            self.stack.top().set_owner(Object::Dir(&*dir), owner)?;
        }
        let finish = Finish {
            mode: self.mode(member),
            xattrs: self.xattrs(member)?,
            atime: member.atime.unwrap_or(member.mtime),
            mtime: member.mtime,
        };
        if let Some(level) = self.open.last_mut() {
            level.finish = finish;
        }
        Ok(())
    }

    /// Gives a member a further name of another one.
    fn link(&mut self, name: &OsStr, target: &Path) -> Result<(), Failed> {
        let shown = target.display();
        let path = components(target).map_err(|failed| match failed {
            Failed::Because(cause) => Failed::Because(format!("it is a link to {shown}: {cause}")),
            other => other,
        })?;
        let Some((last, dirs)) = path.split_last().filter(|_| !path.iter().any(|name| format::is_reserved(name)))
        else {
            return because(format!("it is a link to {shown}, which is no object of the layer"));
        };
        // The directories that are open anyway cost nothing.
        let common = self.open[1..].iter().zip(dirs).take_while(|(level, part)| level.name == **part).count();
        let known = self.open[common].dir.clone();
        let dir = dirs[common..].iter().fold(known, |dir, part| self.stack.child(&dir, part));
        let here = self.here()?;
        let layer = self.stack.top();
        let from = self.stack.open(&dir).map(|from| (layer.stat(Object::Entry(&*from, last)), from));
        match from {
            Ok((Ok(stat), _)) if stat.kind == Kind::Dir => because(format!("it is a link to {shown}, a directory")),
            Ok((Ok(_), from)) => {
                let is_itself = Arc::ptr_eq(&dir, &self.level().dir) && *last == name;
                match is_itself {
                    true => Ok(()),
                    false => self.replacing(name, || self.stack.top().link(Object::Entry(&*from, last), &here, name)),
                }
            }
            _ => because(format!("it is a link to {shown}, which the layer does not have before it")),
        }
    }

    /// Deletes a name of the layers below.
    fn whiteout(&mut self, hidden: &OsStr) -> Result<(), Failed> {
        let (dir, layer) = (self.here()?, self.stack.top());
        match layer.stat(Object::Entry(&*dir, hidden)) {
            // The layer has an object of the name, which shows. At rest there is no whiteout beside
            // it.
            Ok(stat) if stat.kind == Kind::Dir => {
                self.push(hidden)?;
                let dir = self.here()?;
                return Ok(ensure_file(self.stack.top(), &dir, OsStr::new(format::OPAQUE))?);
            }
            Ok(_) => return Ok(()),
            Err(error) if error.errno == ENOENT => {}
            Err(error) => return Err(error.into()),
        }
        let mark = format::whiteout(hidden, self.name_max);
        match layer.create_file(&dir, &mark.name, PRIVATE, layer.identity()) {
            Ok(file) => write_all(layer, &file, &mark.content, 0)?,
            Err(error) if error.errno == EEXIST => {}
            Err(error) => return Err(error.into()),
        }
        let digest = self.digest(hidden);
        self.whiteouts.insert(digest);
        Ok(())
    }

    /// Removes the whiteout of a name that gets an object. A directory is made, and opaque. Returns
    /// whether there was a whiteout.
    fn clear_whiteout(&mut self, name: &OsStr, is_dir: bool) -> Result<bool, Failed> {
        let (dir, layer) = (self.here()?, self.stack.top());
        match layer.unlink(&dir, &format::whiteout(name, self.name_max).name) {
            Err(error) if error.errno == ENOENT => return Ok(false),
            removed => removed?,
        }
        if is_dir {
            layer.create_dir(&dir, name, PRIVATE_DIR, layer.identity())?;
            let new = layer.open_dir(&dir, name)?;
            ensure_file(layer, &new, OsStr::new(format::OPAQUE))?;
        }
        Ok(true)
    }

    /// Whether a name in the current directory may have a whiteout.
    fn may_be_deleted(&self, name: &OsStr) -> bool {
        !self.whiteouts.is_empty() && self.whiteouts.contains(&self.digest(name))
    }

    /// Returns a digest of the path of a name in the current directory.
    fn digest(&self, name: &OsStr) -> u64 {
        let path: Vec<&OsStr> = self.open.iter().map(|level| &*level.name).chain([name]).collect();
        self.digests.hash_one(path)
    }

    /// Makes an object, in the place of one that the archive had before.
    fn replacing<T>(&self, name: &OsStr, make: impl Fn() -> layer::Result<T>) -> Result<T, Failed> {
        match make() {
            Err(error) if error.errno == EEXIST => {
                let dir = &self.level().dir;
                remove_tree(&self.stack, dir, name, self.stack.stat(dir, name)?.kind)?;
                Ok(make()?)
            }
            made => Ok(made?),
        }
    }

    fn owner(&self, member: &Member) -> Owner {
        self.wishes.owner.unwrap_or(Owner { uid: member.uid, gid: member.gid })
    }

    fn mode(&self, member: &Member) -> u32 {
        member.mode & if self.wishes.owner.is_some() { 0o1777 } else { 0o7777 }
    }

    /// Gives an object its attributes. `made` is the mode that it has. None: it has no mode of its
    /// own, or an unknown one.
    fn attributes(&mut self, object: Object<'_, L>, member: &Member, made: Option<u32>) -> Result<(), Failed> {
        let (owner, mode) = (self.owner(member), self.mode(member));
        if owner != self.stack.top().identity() {
            self.stack.top().set_owner(object, owner)?;
        }
        let has_mode = !matches!(member.kind, MemberKind::Symlink(_));
        if has_mode && made != Some(mode) {
            self.stack.top().set_mode(object, mode)?;
        }
        for (name, value) in self.xattrs(member)? {
            self.set_xattr(object, &name, &value)?;
        }
        Ok(self.stack.top().set_times(object, member.atime.unwrap_or(member.mtime), member.mtime)?)
    }

    fn set_xattr(&mut self, object: Object<'_, L>, name: &OsStr, value: &[u8]) -> Result<(), Failed> {
        match self.stack.top().set_xattr(object, name, value, XattrMode::Set) {
            Err(error) if matches!(error.errno, EPERM | EOPNOTSUPP) => {
                if !self.wishes.rootless {
                    let name = name.display();
                    return because(format!("its attribute {name} cannot be set: {error}; --rootless leaves it out"));
                }
                self.left_out.attributes += 1;
                Ok(())
            }
            set => Ok(set?),
        }
    }

    /// Removes the attributes that an earlier member gave the current directory.
    fn clear_xattrs(&mut self) -> Result<(), Failed> {
        let (dir, layer) = (self.here()?, self.stack.top());
        for name in attribute::names(layer, Object::Dir(&*dir))? {
            if name != LABEL && attribute::shown(&name).is_some() {
                remove_xattr(layer, Object::Dir(&*dir), &name)?;
            }
        }
        Ok(())
    }

    /// Returns the extended attributes of a member, as the layer stores them.
    fn xattrs(&mut self, member: &Member) -> Result<BTreeMap<OsString, Vec<u8>>, Failed> {
        let mut xattrs = BTreeMap::new();
        for (name, text) in [acl::ACCESS, acl::DEFAULT].into_iter().zip(&member.acls) {
            // GNU tar writes both forms. Only this one has names, which other systems have too.
            if let Some(text) = text
                && !member.xattrs.contains_key(OsStr::new(name))
            {
                match acl_text::parse(text, &mut |account, name| self.number(account, name)) {
                    Ok(value) => drop(xattrs.insert(name.into(), value)),
                    Err(Wrong::Damaged) => return because("its ACL is damaged"),
                    Err(Wrong::Unknown(account, name)) => {
                        let kind = if account == Account::User { "user" } else { "group" };
                        return because(format!(
                            "its ACL has the {kind} {name}, which neither the layer nor this system knows"
                        ));
                    }
                }
            }
        }
        for (name, value) in &member.xattrs {
            if name != LABEL {
                xattrs.insert(attribute::stored(name).into_owned(), value.clone());
            }
        }
        Ok(xattrs)
    }

    /// Returns the number of a name in an ACL: that in the layer's own `etc`, as far as it is
    /// unpacked, else that of this system. A name has one number in the whole layer.
    fn number(&mut self, account: Account, name: &str) -> Option<u32> {
        if let Some(number) = self.accounts.get(&(account, name.to_owned())) {
            return Some(*number);
        }
        let file = if account == Account::User { "passwd" } else { "group" };
        let own = self.own_file(file).and_then(|text| acl_text::number_in(&text, name));
        let number = own.or_else(|| acl_text::number_in(&std::fs::read(Path::new("/etc").join(file)).ok()?, name))?;
        self.accounts.insert((account, name.to_owned()), number);
        Some(number)
    }

    /// Returns the content of a file in the layer's `etc`.
    fn own_file(&self, name: &str) -> Option<Vec<u8>> {
        let layer = self.stack.top();
        let etc = self.stack.open(&self.stack.child(&self.open[0].dir, OsStr::new("etc"))).ok()?;
        let file = layer.open_file(&etc, OsStr::new(name), Access::Read).ok()?;
        let size = layer.stat(Object::File(&file)).ok()?.size;
        read_start(layer, &file, usize::try_from(size).ok()?.min(ACCOUNTS_MAX)).ok()
    }

    fn level(&self) -> &Level<L> {
        // The top is never left before the end.
        &self.open[self.open.len() - 1]
    }

    /// Returns the current directory.
    fn here(&self) -> layer::Result<Arc<L::Dir>> {
        self.stack.open(&self.level().dir)
    }

    /// Makes `dirs` the current directory, and makes those that are missing.
    fn enter(&mut self, dirs: &[&OsStr]) -> Result<(), Failed> {
        let common = self.open[1..].iter().zip(dirs).take_while(|(level, name)| level.name == **name).count();
        self.leave_to(common + 1)?;
        for name in &dirs[common..] {
            self.push(name)?;
        }
        Ok(())
    }

    /// Enters a directory of the current one, which the archive may have named before or not.
    fn push(&mut self, name: &OsStr) -> Result<(), Failed> {
        let (dir, layer) = (self.here()?, self.stack.top());
        let stat = match layer.stat(Object::Entry(&*dir, name)) {
            Err(error) if error.errno == ENOENT => {
                let is_made = self.may_be_deleted(name) && self.clear_whiteout(name, true)?;
                if !is_made {
                    let layer = self.stack.top();
                    layer.create_dir(&dir, name, PRIVATE_DIR, layer.identity())?;
                }
                self.push_new(name);
                return Ok(());
            }
            stat => stat?,
        };
        match stat.kind {
            Kind::Dir => {}
            Kind::Symlink => return because(format!("{} on its path is a symlink", name.display())),
            _ => return because(format!("{} on its path is no directory", name.display())),
        }
        if stat.mode & PRIVATE_DIR != PRIVATE_DIR {
            layer.set_mode(Object::Entry(&*dir, name), PRIVATE_DIR)?;
        }
        let mut finish = Finish { mode: stat.mode, atime: stat.atime, mtime: stat.mtime, ..Finish::default() };
        let open = layer.open_dir(&dir, name)?;
        // New entries must not inherit it.
        if let Ok(acl) = layer.xattr(Object::Dir(&open), OsStr::new(acl::DEFAULT)) {
            remove_xattr(layer, Object::Dir(&open), OsStr::new(acl::DEFAULT))?;
            finish.xattrs.insert(acl::DEFAULT.into(), acl);
        }
        self.push_new(name);
        if let Some(level) = self.open.last_mut() {
            level.finish = finish;
        }
        Ok(())
    }

    /// Enters a directory that was made just now.
    fn push_new(&mut self, name: &OsStr) {
        let dir = self.stack.child(&self.level().dir, name);
        let finish = Finish { mode: 0o755, ..Finish::default() };
        self.open.push(Level { name: name.to_owned(), dir, finish });
    }

    /// Leaves directories until `depth` are open.
    fn leave_to(&mut self, depth: usize) -> Result<(), Failed> {
        while self.open.len() > depth {
            if let Err(failed) = self.leave() {
                let path: PathBuf = self.open[1..].iter().map(|level| &level.name).collect();
                return Err(Failed::Other(failed.at(&path, &path)));
            }
            self.open.pop();
        }
        Ok(())
    }

    /// Gives the current directory what it gets last.
    fn leave(&mut self) -> Result<(), Failed> {
        let dir = self.here()?;
        let finish = self.open.last_mut().map(|level| std::mem::take(&mut level.finish)).unwrap_or_default();
        let object = Object::Dir(&*dir);
        self.stack.top().set_mode(object, finish.mode)?;
        for (name, value) in &finish.xattrs {
            self.set_xattr(object, name, value)?;
        }
        Ok(self.stack.top().set_times(object, finish.atime, finish.mtime)?)
    }
}

/// Returns a path without `./` at its start and `/` at its end.
fn plain(path: &Path) -> &Path {
    path.strip_prefix(".").unwrap_or(path).components().as_path()
}

/// Returns the components of a path in an archive. None of them leads up.
fn components(path: &Path) -> Result<Vec<&OsStr>, Failed> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > PATH_MAX {
        return because(format!("its path has more than {PATH_MAX} bytes"));
    }
    if bytes.contains(&0) {
        return because("its path contains a zero byte");
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::CurDir => {}
            Component::ParentDir => return because("its path contains `..`"),
            Component::RootDir | Component::Prefix(_) => return because("its path is absolute"),
        }
    }
    Ok(names)
}

/// Whether a name is one that tools for image layers leave out: reserved, without a meaning in OCI.
fn is_of_others(name: &OsStr) -> bool {
    format::is_reserved(name) && !matches!(format::meaning(name), Meaning::Opaque | Meaning::Whiteout(_))
}

/// Removes an attribute, if it is there.
fn remove_xattr<L: Layer>(layer: &L, object: Object<'_, L>, name: &OsStr) -> layer::Result<()> {
    match layer.remove_xattr(object, name) {
        Err(error) if !matches!(error.errno, ENODATA | EOPNOTSUPP) => Err(error),
        _ => Ok(()),
    }
}
