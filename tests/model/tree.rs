//! The reference: a simple POSIX filesystem in memory. It knows nothing of layers. It starts as the
//! merged tree, and then only runs operations.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::ops::Deref;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use overlayfs::errno::*;

use crate::layer::{Body, MARKER, Object};
use crate::{Kind, Owner, RenameMode};

/// The errnos with which an operation may fail. With several reasons, POSIX leaves the choice open.
pub type Errnos = Vec<i32>;
pub type Result<T> = std::result::Result<T, Errnos>;

/// The index of an object in [`Tree::nodes`]. It is never used again.
pub type Id = usize;

/// The contents of a file. Copies of the tree share them until a change.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Data(Arc<Bytes>);

#[derive(Default)]
struct Bytes {
    bytes: Vec<u8>,
    /// The digest of the bytes, computed at the first use.
    digest: OnceLock<u64>,
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Bytes {}

impl Data {
    /// Returns the same bytes, truncated or with zeros to `size`.
    fn resized(&self, size: usize) -> Vec<u8> {
        let kept = size.min(self.len());
        let mut bytes = vec![0; size];
        bytes[..kept].copy_from_slice(&self[..kept]);
        bytes
    }
}

impl Deref for Data {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.0.bytes
    }
}

impl From<Vec<u8>> for Data {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Bytes { bytes, digest: OnceLock::new() }))
    }
}

impl fmt::Debug for Data {
    /// Prints a digest of long contents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len() <= 40 {
            return write!(f, "\"{}\"", self.escape_ascii());
        }
        let (words, rest) = self.as_chunks::<8>();
        let step = |digest: u64, word: u64| (digest ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(29);
        let digest = || {
            let digest = words.iter().fold(0, |digest, word| step(digest, u64::from_le_bytes(*word)));
            rest.iter().fold(digest, |digest, byte| step(digest, (*byte).into()))
        };
        write!(f, "{} bytes, {:016x}", self.len(), self.0.digest.get_or_init(digest))
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    pub owner: Owner,
    /// The contents of a file.
    pub data: Data,
    /// The target of a symlink.
    pub target: OsString,
    /// The entries of a directory.
    pub entries: BTreeMap<OsString, Id>,
    /// The parent of a directory. None for the root, and after a removal.
    pub parent: Option<Id>,
    /// The number of names in the tree.
    pub names: u32,
    /// The time of last change, if it was set and no later operation changes it.
    pub mtime: Option<(i64, u32)>,
    /// The number of operations that may change the time of last change of status.
    pub changes: u32,
    /// The number of copies of no byte to the file. Such a copy is a change if another program has
    /// just truncated the source: then the kernel sets the times before it meets the end.
    pub empty_copies: u32,
    /// Extended attributes, with an ACL among them.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// Whether it came from a lower layer in which it has other names.
    pub linked_below: bool,
    /// Whether it ever had several names in the tree.
    pub linked: bool,
    /// The number of its names in that layer that never showed in the tree. They count as links.
    pub unseen: u32,
    /// Whether it was made without a name, and may get its first one.
    pub temp: bool,
}

impl Node {
    /// Sets the ACL, which has the same meaning as the mode.
    fn set_acl(&mut self, value: &[u8]) {
        let [owner, _, _, mask, others] = rights_of(value).map(u32::from);
        self.xattrs.insert(ACL.into(), value.to_owned());
        self.mode = self.mode & 0o7000 | owner << 6 | mask << 3 | others;
    }
}

/// The place of an operation: a path from the root, or a name in an open directory. Without names
/// it is the root or the directory itself.
#[derive(Clone, Debug)]
pub struct Place {
    pub held: Option<usize>,
    pub path: Vec<OsString>,
}

/// The rules of a front end for names and paths.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether names that begin with `.wh.` cannot exist.
    pub reserves: bool,
    /// Whether a rename can leave a device at the old name.
    pub devices: bool,
    /// Whether symlinks in the middle of a path are followed.
    pub follows: bool,
    /// Whether objects can have extended attributes.
    pub xattrs: bool,
    /// The longest name, in bytes.
    pub name_max: usize,
}

#[derive(Clone)]
pub struct Tree {
    pub nodes: Vec<Node>,
    pub rules: Rules,
    /// The object of each open handle.
    pub handles: BTreeMap<usize, Id>,
}

pub const ROOT: Id = 0;
const LINKS_MAX: usize = 40;

/// The name of the attribute with an ACL.
pub const ACL: &str = "system.posix_acl_access";
/// The user that ACLs name.
/// The attribute of the ACL that a directory hands down.
pub const DEFAULT_ACL: &str = "system.posix_acl_default";
pub const ACLS: [&str; 2] = [ACL, DEFAULT_ACL];
const SOMEBODY: u32 = 1000;

/// Encodes an ACL as an attribute, from the permissions of the owner, the named user, the group,
/// the mask, and others.
pub fn acl(rights: [u8; 5]) -> Vec<u8> {
    const TAGS: [u16; 5] = [1, 2, 4, 0x10, 0x20];
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, rights) in TAGS.into_iter().zip(rights) {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(u16::from(rights).to_le_bytes());
        bytes.extend(if tag == 2 { SOMEBODY } else { u32::MAX }.to_le_bytes());
    }
    bytes
}

/// Decodes an attribute of [`acl`].
fn rights_of(acl: &[u8]) -> [u8; 5] {
    std::array::from_fn(|entry| acl[4 + 8 * entry + 2])
}

fn fail<T>(errno: i32) -> Result<T> {
    Err(vec![errno])
}

fn none_of(errnos: Errnos) -> Result<()> {
    if errnos.is_empty() { Ok(()) } else { Err(errnos) }
}

impl Tree {
    /// Makes the tree of a merged stack of layers. `linked` has the numbers of files with several
    /// names in their layer, with the number of names, also of hidden ones.
    pub fn new(merged: &Object, linked: &HashMap<u64, u32>, rules: Rules) -> Self {
        let mut tree = Self { nodes: Vec::new(), rules, handles: BTreeMap::new() };
        let mut links = BTreeMap::new();
        tree.add(merged, None, &mut links);
        for (number, (id, _)) in links {
            let node = &mut tree.nodes[id];
            if let Some(names) = linked.get(&number) {
                node.linked_below = true;
                node.unseen = names - node.names;
            }
        }
        tree
    }

    fn add(&mut self, object: &Object, parent: Option<Id>, links: &mut BTreeMap<u64, (Id, u32)>) -> Id {
        if let Some((id, names)) = links.get_mut(&object.id) {
            *names += 1;
            self.nodes[*id].names += 1;
            return *id;
        }
        let id = self.nodes.len();
        self.nodes.push(Node {
            kind: object.kind(),
            mode: object.meta.mode,
            owner: Owner { uid: object.meta.uid, gid: object.meta.gid },
            data: Data::default(),
            target: OsString::new(),
            entries: BTreeMap::new(),
            parent,
            names: 1,
            mtime: Some(object.meta.mtime),
            changes: 0,
            empty_copies: 0,
            xattrs: BTreeMap::new(),
            linked_below: false,
            linked: false,
            unseen: 0,
            temp: false,
        });
        match &object.body {
            Body::File(bytes) => self.nodes[id].data = bytes.clone().into(),
            Body::Symlink(target) => self.nodes[id].target = target.clone(),
            Body::Node(_) => {}
            Body::Dir(dir) => {
                for (name, entry) in &dir.entries {
                    let entry = self.add(entry, Some(id), links);
                    self.nodes[id].entries.insert(name.clone(), entry);
                }
                return id;
            }
        }
        links.insert(object.id, (id, 1));
        id
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    fn is_dir(&self, id: Id) -> bool {
        self.nodes[id].kind == Kind::Dir
    }

    /// Returns whether a directory was removed and is still open.
    fn is_dead(&self, id: Id) -> bool {
        self.nodes[id].names == 0
    }

    /// Returns every name in the tree with its object, parents first. The first is the root ("").
    pub fn paths(&self) -> Vec<(PathBuf, Id)> {
        self.paths_below(ROOT, Path::new(""))
    }

    /// Returns the object at a path in the tree.
    pub fn at(&self, path: &Path) -> Option<Id> {
        path.iter().try_fold(ROOT, |dir, name| self.nodes[dir].entries.get(name).copied())
    }

    fn paths_below(&self, id: Id, path: &Path) -> Vec<(PathBuf, Id)> {
        let below = self.nodes[id].entries.iter().flat_map(|(name, entry)| self.paths_below(*entry, &path.join(name)));
        std::iter::once((path.to_owned(), id)).chain(below).collect()
    }

    /// Returns the object `name` of the directory `dir`.
    pub fn lookup(&self, dir: Id, name: &OsStr) -> Result<Id> {
        if !self.is_dir(dir) {
            return fail(ENOTDIR);
        }
        if name.len() > self.rules.name_max {
            // In a removed directory, a lookup fails in any case.
            return Err(if self.is_dead(dir) { vec![ENAMETOOLONG, ENOENT] } else { vec![ENAMETOOLONG] });
        }
        self.nodes[dir].entries.get(name).copied().ok_or(vec![ENOENT])
    }

    /// Returns the directory of the last name of a path, and that name. The name is None if the
    /// path has no last name.
    fn walk(&self, place: &Place) -> Result<(Id, Option<OsString>)> {
        let start = match place.held {
            Some(handle) => *self.handles.get(&handle).ok_or(vec![EBADF])?,
            None => ROOT,
        };
        let Some((last, parents)) = place.path.split_last() else {
            return Ok((start, None));
        };
        let mut dir = start;
        for name in parents {
            dir = self.step(dir, name, &mut 0)?;
        }
        if !self.is_dir(dir) {
            return fail(ENOTDIR);
        }
        Ok((dir, Some(last.clone())))
    }

    /// Goes from `dir` to its entry `name`, through symlinks if the rules say so. `links` counts
    /// those of this path.
    fn step(&self, dir: Id, name: &OsStr, links: &mut usize) -> Result<Id> {
        let id = match name.as_bytes() {
            b"." if self.is_dir(dir) => dir,
            b".." if self.is_dir(dir) => self.nodes[dir].parent.unwrap_or(dir),
            _ => self.lookup(dir, name)?,
        };
        if self.nodes[id].kind != Kind::Symlink || !self.rules.follows {
            return Ok(id);
        }
        *links += 1;
        if *links > LINKS_MAX {
            return fail(ELOOP);
        }
        Path::new(&self.nodes[id].target).iter().try_fold(dir, |dir, name| self.step(dir, name, links))
    }

    /// Returns the object at a place. A symlink at the end is not followed.
    pub fn find(&self, place: &Place) -> Result<Id> {
        match self.walk(place)? {
            (dir, None) => Ok(dir),
            (dir, Some(name)) => self.lookup(dir, &name),
        }
    }

    /// Returns the errnos against `name` as a new entry of `dir`.
    fn new_name(&self, dir: Id, name: &OsStr) -> Errnos {
        let mut wrong = Vec::new();
        if self.is_dead(dir) {
            wrong.push(ENOENT);
        }
        if name.len() > self.rules.name_max {
            wrong.push(ENAMETOOLONG);
        }
        if self.rules.reserves && name.as_bytes().starts_with(MARKER.as_bytes()) {
            wrong.push(EINVAL);
        }
        wrong
    }

    /// Returns the directory and the name of a place, for a creation or removal.
    fn entry(&self, place: &Place) -> Result<(Id, OsString)> {
        let (dir, name) = self.walk(place)?;
        Ok((dir, name.expect("an entry has a name")))
    }

    /// Counts a possible change of the times of last change of status.
    fn change(&mut self, ids: &[Id]) {
        ids.iter().for_each(|id| self.nodes[*id].changes += 1);
    }

    /// Adds an entry that does not exist.
    fn enter(&mut self, dir: Id, name: OsString, id: Id) {
        self.change(&[dir, id]);
        self.nodes[dir].entries.insert(name, id);
        self.nodes[dir].mtime = None;
        self.nodes[id].names += 1;
        if self.is_dir(id) {
            self.nodes[id].parent = Some(dir);
        }
    }

    /// Removes an entry and returns its object.
    fn leave(&mut self, dir: Id, name: &OsStr) -> Id {
        let id = self.nodes[dir].entries.remove(name).expect("the entry was looked up");
        self.change(&[dir, id]);
        self.nodes[dir].mtime = None;
        self.nodes[id].names -= 1;
        if self.is_dir(id) {
            self.nodes[id].parent = None;
        }
        id
    }

    pub fn create(&mut self, place: &Place, kind: Kind, mode: u32, owner: Owner, target: &OsStr) -> Result<Id> {
        let (dir, name) = self.entry(place)?;
        let mut wrong = self.new_name(dir, &name);
        if self.nodes[dir].entries.contains_key(&name) {
            wrong.push(EEXIST);
        }
        none_of(wrong)?;
        let id = self.add_nameless(kind, if kind == Kind::Symlink { 0o777 } else { mode }, owner, target);
        self.inherit(dir, id);
        self.enter(dir, name, id);
        Ok(id)
    }

    /// Makes a file without a name, in the directory at a place.
    pub fn create_temp(&mut self, place: &Place, mode: u32, owner: Owner) -> Result<Id> {
        let dir = self.find(place)?;
        if !self.is_dir(dir) {
            return fail(ENOTDIR);
        }
        if self.is_dead(dir) {
            return fail(ENOENT);
        }
        let id = self.add_nameless(Kind::File, mode, owner, OsStr::new(""));
        self.nodes[id].temp = true;
        self.inherit(dir, id);
        Ok(id)
    }

    fn add_nameless(&mut self, kind: Kind, mode: u32, owner: Owner, target: &OsStr) -> Id {
        let id = self.nodes.len();
        self.nodes.push(Node {
            kind,
            mode,
            owner,
            data: Data::default(),
            target: target.to_owned(),
            entries: BTreeMap::new(),
            parent: None,
            names: 0,
            mtime: None,
            changes: 0,
            empty_copies: 0,
            xattrs: BTreeMap::new(),
            linked_below: false,
            linked: false,
            unseen: 0,
            temp: false,
        });
        id
    }

    /// Gives a new object the ACL that its directory hands down.
    fn inherit(&mut self, dir: Id, id: Id) {
        let default = self.nodes[dir].xattrs.get(OsStr::new(DEFAULT_ACL)).cloned();
        let node = &mut self.nodes[id];
        let Some(default) = default.filter(|_| node.kind != Kind::Symlink) else { return };
        let [owner, user, group, mask, others] = rights_of(&default);
        let allowed = |shift: u32| (node.mode >> shift) as u8 & 7;
        let rights = [owner & allowed(6), user, group, mask & allowed(3), others & allowed(0)];
        node.set_acl(&acl(rights));
        if node.kind == Kind::Dir {
            node.xattrs.insert(DEFAULT_ACL.into(), default);
        }
    }

    pub fn link(&mut self, id: Id, to: &Place) -> Result<()> {
        let (dir, name) = self.entry(to)?;
        let mut wrong = self.new_name(dir, &name);
        if self.is_dir(id) {
            wrong.push(EPERM);
        } else if self.nodes[id].names == 0 && !self.nodes[id].temp {
            wrong.push(ENOENT);
        }
        if self.nodes[dir].entries.contains_key(&name) {
            wrong.push(EEXIST);
        }
        none_of(wrong)?;
        self.nodes[id].temp = false;
        self.enter(dir, name, id);
        self.nodes[id].linked |= self.nodes[id].names > 1;
        Ok(())
    }

    pub fn unlink(&mut self, place: &Place) -> Result<()> {
        let (dir, name) = self.entry(place)?;
        if self.is_dir(self.lookup(dir, &name)?) {
            return fail(EISDIR);
        }
        self.leave(dir, &name);
        Ok(())
    }

    pub fn remove_dir(&mut self, place: &Place) -> Result<()> {
        let (dir, name) = self.entry(place)?;
        let id = self.lookup(dir, &name)?;
        if !self.is_dir(id) {
            return fail(ENOTDIR);
        }
        if !self.nodes[id].entries.is_empty() {
            return fail(ENOTEMPTY);
        }
        self.leave(dir, &name);
        Ok(())
    }

    /// Returns whether `dir` is `id` or below it.
    fn is_within(&self, dir: Id, id: Id) -> bool {
        std::iter::successors(Some(dir), |dir| self.nodes[*dir].parent).any(|dir| dir == id)
    }

    pub fn rename(&mut self, from: &Place, to: &Place, mode: RenameMode) -> Result<()> {
        let source = self.entry(from).and_then(|(dir, name)| Ok((dir, self.lookup(dir, &name)?, name)));
        let (dir, id, name, new_dir, new_name) = match (source, self.entry(to)) {
            (Ok((dir, id, name)), Ok((new_dir, new_name))) => (dir, id, name, new_dir, new_name),
            (Err(errnos), Ok((new_dir, new_name))) => {
                let exists = self.nodes[new_dir].entries.contains_key(&new_name) && mode == RenameMode::NoReplace;
                let wrong = self.new_name(new_dir, &new_name);
                return Err([errnos, wrong, if exists { vec![EEXIST] } else { Vec::new() }].concat());
            }
            (Ok(_), Err(errnos)) => return Err(errnos),
            (Err(errnos), Err(mut more)) => {
                more.extend(errnos);
                return Err(more);
            }
        };
        let target = self.nodes[new_dir].entries.get(&new_name).copied();
        let mut wrong = self.new_name(new_dir, &new_name);
        if mode == RenameMode::Exchange && target.is_none() {
            wrong.push(ENOENT);
        }
        if mode == RenameMode::Whiteout && !self.rules.devices {
            wrong.push(EINVAL);
        }
        if self.is_within(new_dir, id) {
            wrong.push(EINVAL);
        }
        if let Some(target) = target {
            self.check_target(id, dir, target, mode, &mut wrong);
        }
        none_of(wrong)?;
        if target == Some(id) {
            return Ok(());
        }
        match (mode, target) {
            (RenameMode::Exchange, Some(target)) => {
                self.leave(dir, &name);
                self.leave(new_dir, &new_name);
                self.enter(dir, name, target);
                self.enter(new_dir, new_name, id);
            }
            _ => {
                if target.is_some() {
                    self.leave(new_dir, &new_name);
                }
                self.leave(dir, &name);
                self.enter(new_dir, new_name, id);
                if mode == RenameMode::Whiteout {
                    // The device gets the group of a directory with the set-group-id bit, as every
                    // new object in it.
                    let gid = if self.nodes[dir].mode & 0o2000 == 0 { 0 } else { self.nodes[dir].owner.gid };
                    let device = self.add_nameless(Kind::CharDev, 0, Owner { uid: 0, gid }, OsStr::new(""));
                    self.inherit(dir, device);
                    self.enter(dir, name, device);
                }
            }
        }
        Ok(())
    }

    /// Collects the errnos against a rename of the entry `id` of `dir` to the name of `target`.
    fn check_target(&self, id: Id, dir: Id, target: Id, mode: RenameMode, wrong: &mut Errnos) {
        let holds_source = self.is_within(dir, target);
        match mode {
            RenameMode::NoReplace => {
                wrong.push(EEXIST);
                if holds_source {
                    wrong.push(ENOTEMPTY);
                }
            }
            RenameMode::Exchange if holds_source => wrong.push(EINVAL),
            RenameMode::Exchange => {}
            RenameMode::Replace | RenameMode::Whiteout if target == id => {}
            RenameMode::Replace | RenameMode::Whiteout => {
                match (self.is_dir(id), self.is_dir(target)) {
                    (true, false) => wrong.push(ENOTDIR),
                    (false, true) => wrong.push(EISDIR),
                    _ => {}
                }
                if self.is_dir(target) && (self.is_dir(id) || holds_source) && !self.nodes[target].entries.is_empty() {
                    wrong.push(ENOTEMPTY);
                }
            }
        }
    }

    pub fn set_mode(&mut self, id: Id, mode: u32) -> Result<()> {
        if self.nodes[id].kind == Kind::Symlink {
            return fail(EOPNOTSUPP);
        }
        self.change(&[id]);
        self.nodes[id].mode = mode;
        if let Some(value) = self.nodes[id].xattrs.get_mut(OsStr::new(ACL)) {
            let [_, user, group, _, _] = rights_of(value);
            *value = acl([(mode >> 6) as u8 & 7, user, group, (mode >> 3) as u8 & 7, mode as u8 & 7]);
        }
        Ok(())
    }

    pub fn set_owner(&mut self, id: Id, owner: Owner) {
        self.change(&[id]);
        self.nodes[id].owner = owner;
    }

    pub fn set_mtime(&mut self, id: Id, mtime: (i64, u32)) {
        self.change(&[id]);
        self.nodes[id].mtime = Some(mtime);
    }

    /// Fails with the errno if an object of this kind can have no attribute of this name.
    fn may_have_xattr(&self, id: Id, name: &OsStr) -> Result<()> {
        match self.nodes[id].kind {
            Kind::Symlink if name == ACL || name == DEFAULT_ACL => fail(EOPNOTSUPP),
            Kind::Dir => Ok(()),
            _ if name == DEFAULT_ACL => fail(EACCES),
            Kind::File => Ok(()),
            _ if name.as_bytes().starts_with(b"user.") => fail(EPERM),
            _ => Ok(()),
        }
    }

    pub fn set_xattr(&mut self, id: Id, name: &OsStr, value: &[u8]) -> Result<()> {
        self.may_have_xattr(id, name)?;
        self.change(&[id]);
        let node = &mut self.nodes[id];
        if name == ACL {
            node.set_acl(value);
        } else {
            node.xattrs.insert(name.to_owned(), value.to_owned());
        }
        Ok(())
    }

    pub fn remove_xattr(&mut self, id: Id, name: &OsStr) -> Result<()> {
        let removed = self.nodes[id].xattrs.remove(name);
        if removed.is_none() {
            // A removal succeeds with and without an ACL.
            return match self.may_have_xattr(id, name) {
                Ok(()) if name == ACL || name == DEFAULT_ACL => {
                    self.change(&[id]);
                    Ok(())
                }
                // Only to set one is refused.
                Err(_) if name == DEFAULT_ACL && self.nodes[id].kind != Kind::Symlink => Ok(()),
                Ok(()) => fail(ENODATA),
                Err(errnos) => Err([errnos, vec![ENODATA]].concat()),
            };
        }
        self.change(&[id]);
        Ok(())
    }

    /// Returns the file, or the errno of a read or write of another kind of object.
    fn file(&mut self, id: Id) -> Result<&mut Node> {
        match self.nodes[id].kind {
            Kind::File => Ok(&mut self.nodes[id]),
            Kind::Dir => fail(EISDIR),
            _ => fail(EINVAL),
        }
    }

    pub fn truncate(&mut self, id: Id, size: usize) -> Result<()> {
        let node = self.file(id)?;
        node.data = node.data.resized(size).into();
        node.mtime = None;
        node.changes += 1;
        Ok(())
    }

    /// Copies a byte of a file, if it has one there, to another offset in it or in another file.
    pub fn copy_byte(&mut self, from: Id, from_offset: usize, to: Id, to_offset: usize) -> Result<()> {
        let byte = self.file(from).map(|file| file.data.get(from_offset).copied());
        let byte = match (byte, self.file(to)) {
            (Ok(byte), Ok(_)) => byte,
            (from, to) => return Err([from.err(), to.err()].into_iter().flatten().flatten().collect()),
        };
        if byte.is_some() && (from, from_offset) == (to, to_offset) {
            return fail(EINVAL);
        }
        match byte {
            Some(byte) => return self.write(to, Some(to_offset), &[byte]),
            None => self.nodes[to].empty_copies += 1,
        }
        Ok(())
    }

    /// Extends a file to at least `size` bytes.
    pub fn reserve(&mut self, id: Id, size: usize) -> Result<()> {
        let size = size.max(self.file(id)?.data.len());
        self.truncate(id, size)
    }

    pub fn read(&mut self, id: Id, offset: usize, len: usize) -> Result<Vec<u8>> {
        let data = &self.file(id)?.data;
        Ok(data.iter().skip(offset).take(len).copied().collect())
    }

    /// Returns the names in a directory, sorted.
    pub fn list(&self, id: Id) -> Result<Vec<OsString>> {
        if !self.is_dir(id) {
            return fail(ENOTDIR);
        }
        Ok(self.nodes[id].entries.keys().cloned().collect())
    }

    /// Turns the name `path` of a file into a name of `id`.
    pub fn replace(&mut self, path: &Path, id: Id) {
        let parents = path.parent().into_iter().flatten();
        let dir = parents.fold(ROOT, |dir, name| self.nodes[dir].entries[name]);
        let name = path.file_name().expect("the root is no file");
        let mtime = self.nodes[dir].mtime;
        self.leave(dir, name);
        self.enter(dir, name.to_owned(), id);
        self.nodes[dir].mtime = mtime;
    }

    /// Writes at `offset`, or at the end.
    pub fn write(&mut self, id: Id, offset: Option<usize>, bytes: &[u8]) -> Result<()> {
        let node = self.file(id)?;
        let offset = offset.unwrap_or(node.data.len());
        if !bytes.is_empty() {
            let end = offset + bytes.len();
            let mut data = node.data.resized(node.data.len().max(end));
            data[offset..end].copy_from_slice(bytes);
            node.data = data.into();
        }
        node.mtime = None;
        node.changes += 1;
        Ok(())
    }
}
