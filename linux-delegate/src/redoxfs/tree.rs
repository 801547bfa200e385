//! The content of a redoxfs disk: nodes, the entries of directories, and the rules of redoxfs for
//! changes, with its omissions. This file knows no requests.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use redox_path::{RedoxPath, RedoxStr};
use syscall::error::{
    EACCES, EBUSY, EEXIST, EINVAL, EIO, EISDIR, ELOOP, ENOENT, ENOSPC, ENOTDIR, ENOTEMPTY, EPERM, EXDEV, Error, Result,
};
use syscall::flag::{MODE_DIR, MODE_FILE, MODE_PERM, MODE_SYMLINK, MODE_TYPE};

/// The number of the top directory.
pub const ROOT: u32 = 1;
/// The longest name in bytes.
pub const NAME_MAX: usize = 252;
/// The unit of space in bytes.
pub const BLOCK: u64 = 4096;
/// The number of blocks of the disk.
pub const BLOCKS: u64 = 1 << 18;

/// How many symlinks one path may pass.
const LINKS_MAX: usize = 64;
/// After so many seconds a read changes the time of last access.
const ATIME_LAZY: u64 = 3600;

/// The three kinds of permission.
pub const READ: u16 = 0o4;
pub const WRITE: u16 = 0o2;
pub const SEARCH: u16 = 0o1;

/// Seconds since 1970, and nanoseconds.
pub type Time = (u64, u32);

/// The caller of a request.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

impl User {
    pub const ROOT: User = User { uid: 0, gid: 0 };
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Type and permissions.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub atime: Time,
    pub mtime: Time,
    /// The time of creation: redoxfs never changes it.
    pub ctime: Time,
    pub content: Content,
}

/// The content of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes of a file, or the target of a symlink.
    Bytes(Vec<u8>),
    /// The numbers of the nodes by name. There should be one, but a link to a taken name adds a
    /// second entry with that name.
    Entries(BTreeMap<String, Vec<u32>>),
}

/// The target of a path.
pub struct Found {
    /// The directory of the target. None: the target is the top directory.
    pub parent: Option<u32>,
    /// The name of the target there.
    pub name: String,
    /// None: nothing has that name.
    pub node: Option<u32>,
}

/// The whole content of a disk.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<u32, Node>,
    /// How many descriptors of a node are open. A node without a name ends with the last.
    open: BTreeMap<u32, usize>,
    scheme: String,
}

impl Node {
    fn new(mode: u16, user: User) -> Self {
        let now = now();
        let content =
            if mode & MODE_TYPE == MODE_DIR { Content::Entries(BTreeMap::new()) } else { Content::Bytes(Vec::new()) };
        Self { mode, uid: user.uid, gid: user.gid, links: 0, atime: now, mtime: now, ctime: now, content }
    }

    pub fn is_dir(&self) -> bool {
        self.mode & MODE_TYPE == MODE_DIR
    }

    pub fn is_symlink(&self) -> bool {
        self.mode & MODE_TYPE == MODE_SYMLINK
    }

    /// Whether `user` is the owner, or root.
    pub fn is_owner(&self, uid: u32) -> bool {
        uid == 0 || uid == self.uid
    }

    /// Whether `user` has a permission. Every class of the user can grant it, and the group 0 is in
    /// all groups (`Node::permission` in redoxfs).
    pub fn permits(&self, user: User, what: u16) -> bool {
        let mut granted = self.mode;
        if user.uid == self.uid {
            granted |= self.mode >> 6;
        }
        if user.gid == self.gid || user.gid == 0 {
            granted |= self.mode >> 3;
        }
        user.uid == 0 || granted & what == what
    }

    pub fn bytes(&self) -> Result<&Vec<u8>> {
        match &self.content {
            Content::Bytes(bytes) => Ok(bytes),
            Content::Entries(_) => Err(Error::new(EISDIR)),
        }
    }

    fn bytes_mut(&mut self) -> Result<&mut Vec<u8>> {
        match &mut self.content {
            Content::Bytes(bytes) => Ok(bytes),
            Content::Entries(_) => Err(Error::new(EISDIR)),
        }
    }

    pub fn entries(&self) -> Result<&BTreeMap<String, Vec<u32>>> {
        match &self.content {
            Content::Entries(entries) => Ok(entries),
            Content::Bytes(_) => Err(Error::new(ENOTDIR)),
        }
    }

    fn entries_mut(&mut self) -> Result<&mut BTreeMap<String, Vec<u32>>> {
        match &mut self.content {
            Content::Entries(entries) => Ok(entries),
            Content::Bytes(_) => Err(Error::new(ENOTDIR)),
        }
    }

    /// Returns the reported size. For a directory it is the blocks of its entries.
    pub fn size(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Entries(entries) => (entries.len() as u64).div_ceil(16) * BLOCK,
        }
    }
}

impl Tree {
    /// Makes a disk for the scheme with this name: a top directory of root.
    pub fn new(scheme: &str) -> Self {
        let root = Node { links: 1, ..Node::new(MODE_DIR | 0o755, User::ROOT) };
        Self { nodes: BTreeMap::from([(ROOT, root)]), open: BTreeMap::new(), scheme: scheme.to_owned() }
    }

    /// Returns a node.
    ///
    /// # Errors
    ///
    /// - ENOENT: no node has this number.
    pub fn node(&self, id: u32) -> Result<&Node> {
        self.nodes.get(&id).ok_or(Error::new(ENOENT))
    }

    /// Returns a node for a change.
    ///
    /// # Errors
    ///
    /// - ENOENT: no node has this number.
    pub fn node_mut(&mut self, id: u32) -> Result<&mut Node> {
        self.nodes.get_mut(&id).ok_or(Error::new(ENOENT))
    }

    /// Returns the node of the entry `name` of a directory.
    ///
    /// # Errors
    ///
    /// - ENOENT: there is no such entry.
    pub fn entry(&self, dir: u32, name: &str) -> Result<u32> {
        let ids = self.node(dir)?.entries()?.get(name);
        ids.and_then(|ids| ids.first()).copied().ok_or(Error::new(ENOENT))
    }

    /// Returns the blocks of the disk, and how many are free.
    pub fn space(&self) -> (u64, u64) {
        let used: u64 = self.nodes.values().map(|node| 1 + node.size().div_ceil(BLOCK)).sum();
        (BLOCKS, BLOCKS.saturating_sub(used))
    }

    /// Follows a path from the top directory. `..` is resolved in the text before. Symlinks on the
    /// way are followed, the last name is not.
    ///
    /// # Errors
    ///
    /// - EACCES: the user may not search a directory.
    /// - ELOOP: the path passes too many symlinks.
    /// - ENOENT: a directory on the way is missing.
    /// - ENOTDIR: an object on the way is no directory.
    /// - EXDEV: a symlink leads to another scheme.
    pub fn find(&self, path: &str, user: User) -> Result<Found> {
        self.find_through(path, user, LINKS_MAX)
    }

    /// Follows a path as [`Tree::find`] does, and also a symlink at the end.
    ///
    /// # Errors
    ///
    /// - ENOENT: a symlink dangles.
    /// - The errors of [`Tree::find`].
    pub fn find_target(&self, path: &str, user: User) -> Result<(String, Found)> {
        let mut path = path.to_owned();
        for _ in 0..LINKS_MAX {
            let found = self.find(&path, user)?;
            match found.node {
                Some(id) if self.node(id)?.is_symlink() => path = self.target(&path, id)?,
                _ => return Ok((path, found)),
            }
        }
        Err(Error::new(ELOOP))
    }

    fn find_through(&self, path: &str, user: User, links: usize) -> Result<Found> {
        let mut names: Vec<&str> = components(path).collect();
        let Some(last) = names.pop() else {
            return Ok(Found { parent: None, name: String::new(), node: Some(ROOT) });
        };
        let (mut dir, mut way) = (ROOT, String::new());
        for name in names {
            self.check_search(dir, user)?;
            let id = self.entry(dir, name)?;
            way = join(&way, name);
            dir = match self.node(id)? {
                node if node.is_dir() => id,
                node if node.is_symlink() => {
                    let links = links.checked_sub(1).ok_or(Error::new(ELOOP))?;
                    way = self.target(&way, id)?;
                    let found = self.find_through(&way, user, links)?;
                    found.node.filter(|id| self.node(*id).is_ok_and(Node::is_dir)).ok_or(Error::new(ENOTDIR))?
                }
                _ => return Err(Error::new(ENOTDIR)),
            };
        }
        self.check_search(dir, user)?;
        if !self.node(dir)?.is_dir() {
            return Err(Error::new(ENOTDIR));
        }
        Ok(Found { parent: Some(dir), name: last.to_owned(), node: self.entry(dir, last).ok() })
    }

    fn check_search(&self, dir: u32, user: User) -> Result<()> {
        if self.node(dir)?.permits(user, SEARCH) { Ok(()) } else { Err(Error::new(EACCES)) }
    }

    /// Returns the target of the symlink `id` at `path`.
    ///
    /// # Errors
    ///
    /// - EXDEV: it leads to another scheme.
    /// - EINVAL: it is no path.
    fn target(&self, path: &str, id: u32) -> Result<String> {
        let target = std::str::from_utf8(self.node(id)?.bytes()?).map_err(|_| Error::new(EINVAL))?;
        match RedoxStr::new(target).ok_or(Error::new(EINVAL))? {
            RedoxStr::Absolute(target) if names_another(&target, &self.scheme) => Err(Error::new(EXDEV)),
            RedoxStr::Absolute(target) => {
                let (_, reference) = target.as_parts().ok_or(Error::new(EINVAL))?;
                Ok(canonical(reference.as_ref()))
            }
            RedoxStr::Relative(target) => {
                let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
                Ok(canonical(&join(dir, target.as_ref())))
            }
        }
    }

    /// Makes a node with a name.
    ///
    /// # Errors
    ///
    /// - EEXIST: the name is taken.
    /// - EINVAL: the name is too long or has a colon.
    pub fn create(&mut self, dir: u32, name: &str, mode: u16, user: User) -> Result<u32> {
        self.check_name(dir, name)?;
        // The lowest free number: redoxfs reuses the numbers of removed nodes at once.
        let id = (ROOT + 1..).find(|id| !self.nodes.contains_key(id)).ok_or(Error::new(ENOSPC))?;
        self.nodes.insert(id, Node::new(mode, user));
        self.enter(dir, name, id)?;
        Ok(id)
    }

    fn check_name(&self, dir: u32, name: &str) -> Result<()> {
        if name.contains(':') || name.len() > NAME_MAX {
            return Err(Error::new(EINVAL));
        }
        if self.entry(dir, name).is_ok() { Err(Error::new(EEXIST)) } else { Ok(()) }
    }

    /// Gives a node one more name. Checks neither the name nor the kind of the node, and changes no
    /// time.
    pub fn enter(&mut self, dir: u32, name: &str, id: u32) -> Result<()> {
        self.node_mut(id)?.links += 1;
        self.node_mut(dir)?.entries_mut()?.entry(name.to_owned()).or_default().push(id);
        Ok(())
    }

    /// Removes a name, and the node with its last name unless it is open.
    ///
    /// # Errors
    ///
    /// - ENOENT: there is no such entry.
    /// - ENOTEMPTY: the directory has entries.
    pub fn remove(&mut self, dir: u32, name: &str) -> Result<()> {
        let id = self.entry(dir, name)?;
        let node = self.node(id)?;
        if node.links == 1 && node.entries().is_ok_and(|entries| !entries.is_empty()) {
            return Err(Error::new(ENOTEMPTY));
        }
        let entries = self.node_mut(dir)?.entries_mut()?;
        let ids = entries.get_mut(name).ok_or(Error::new(ENOENT))?;
        ids.remove(0);
        if ids.is_empty() {
            entries.remove(name);
        }
        self.node_mut(id)?.links -= 1;
        self.forget(id);
        Ok(())
    }

    /// Moves an entry, and replaces an object with the new name. Does not check whether a directory
    /// moves into itself.
    pub fn rename(&mut self, dir: u32, name: &str, new_dir: u32, new_name: &str) -> Result<()> {
        let id = self.entry(dir, name)?;
        if let Ok(new) = self.entry(new_dir, new_name) {
            if new == id {
                return Ok(());
            }
            self.remove(new_dir, new_name)?;
        }
        self.check_name(new_dir, new_name)?;
        self.enter(new_dir, new_name, id)?;
        self.remove(dir, name)
    }

    /// Checks the conditions for a new path of a node that was opened in `parent`. Returns the old
    /// directory, the new directory and the name.
    ///
    /// # Errors
    ///
    /// - EBUSY: the node is the top directory.
    /// - EACCES: the node, the new directory or the replaced object belongs to another user.
    /// - EACCES: the node is no directory, and the replaced object is one.
    /// - ENOTDIR: the node is a directory, and the replaced object is none.
    /// - ENOTEMPTY: the replaced directory has entries.
    pub fn check_new_link(&self, id: u32, parent: Option<u32>, path: &str, user: User) -> Result<(u32, u32, String)> {
        let parent = parent.ok_or(Error::new(EBUSY))?;
        let node = self.node(id)?;
        let found = self.find(path, user)?;
        let new_parent = found.parent.ok_or(Error::new(EPERM))?;
        let replaced = found.node.map(|new| self.node(new)).transpose()?;
        let own = [Some(node), Some(self.node(new_parent)?), replaced];
        if own.into_iter().flatten().any(|node| !node.is_owner(user.uid)) {
            return Err(Error::new(EACCES));
        }
        match replaced {
            Some(replaced) if replaced.is_dir() && !node.is_dir() => Err(Error::new(EACCES)),
            Some(replaced) if !replaced.is_dir() && node.is_dir() => Err(Error::new(ENOTDIR)),
            Some(replaced) if replaced.entries().is_ok_and(|entries| !entries.is_empty()) => Err(Error::new(ENOTEMPTY)),
            _ => Ok((parent, new_parent, found.name)),
        }
    }

    /// Reads.
    pub fn read(&mut self, id: u32, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let node = self.node_mut(id)?;
        let rest = usize::try_from(offset).ok().and_then(|offset| node.bytes().ok()?.get(offset..)).unwrap_or(&[]);
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        let now = now();
        if count > 0 && now.0.saturating_sub(node.atime.0) > ATIME_LAZY {
            node.atime = now;
        }
        Ok(count)
    }

    /// Writes.
    ///
    /// # Errors
    ///
    /// - EISDIR: the node is a directory.
    /// - ENOSPC: the write passes the end of the disk.
    pub fn write(&mut self, id: u32, offset: u64, buf: &[u8]) -> Result<usize> {
        let end = offset.checked_add(buf.len() as u64).ok_or(Error::new(ENOSPC))?;
        let node = self.node_mut(id)?;
        if !buf.is_empty() {
            grow(node, end)?;
            let range = offset as usize..end as usize;
            node.bytes_mut()?.get_mut(range).ok_or(Error::new(EIO))?.copy_from_slice(buf);
        }
        node.mtime = now();
        Ok(buf.len())
    }

    /// Sets the size of a file.
    ///
    /// # Errors
    ///
    /// - EISDIR: the node is a directory.
    /// - ENOSPC: the size passes the end of the disk.
    pub fn truncate(&mut self, id: u32, size: u64) -> Result<()> {
        let node = self.node_mut(id)?;
        if node.size() == size {
            return Ok(());
        }
        grow(node, size)?;
        node.bytes_mut()?.truncate(size as usize);
        node.mtime = now();
        Ok(())
    }

    /// Counts a new descriptor of a node.
    pub fn opened(&mut self, id: u32) {
        *self.open.entry(id).or_default() += 1;
    }

    /// Counts a descriptor of a node as closed.
    pub fn closed(&mut self, id: u32) {
        if let Some(count) = self.open.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&id);
                self.forget(id);
            }
        }
    }

    /// Returns how many descriptors are open.
    pub fn open(&self) -> usize {
        self.open.values().sum()
    }

    /// Copies the tree for a filesystem with the name `scheme`. Nothing is open there.
    pub fn copy(&self, scheme: &str) -> Self {
        Self { nodes: self.nodes.clone(), open: BTreeMap::new(), scheme: scheme.to_owned() }
    }

    /// Closes all descriptors, as the end of the system does.
    pub fn close_all(&mut self) {
        for id in std::mem::take(&mut self.open).into_keys() {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u32) {
        if self.nodes.get(&id).is_some_and(|node| node.links == 0) && !self.open.contains_key(&id) {
            self.nodes.remove(&id);
        }
    }
}

/// The access of tests to a disk, by path and without a request. These functions panic on an error,
/// since the test would mean nothing then.
impl Tree {
    /// Returns the number of the object at `path`, without following symlinks.
    #[track_caller]
    pub fn at(&self, path: &str) -> u32 {
        self.get(path).unwrap_or_else(|| panic!("there is no {path}"))
    }

    /// As [`Tree::at`]. None: there is nothing.
    pub fn get(&self, path: &str) -> Option<u32> {
        components(path).try_fold(ROOT, |dir, name| self.entry(dir, name).ok())
    }

    /// Returns the object at `path`.
    #[track_caller]
    pub fn look(&self, path: &str) -> &Node {
        self.node(self.at(path)).expect("an entry has a node")
    }

    /// Returns the object at `path` for a change.
    #[track_caller]
    pub fn look_mut(&mut self, path: &str) -> &mut Node {
        let id = self.at(path);
        self.node_mut(id).expect("an entry has a node")
    }

    /// Returns the content of a file, or the target of a symlink, as text.
    #[track_caller]
    pub fn text(&self, path: &str) -> String {
        String::from_utf8(self.look(path).bytes().expect("not a directory").clone()).expect("text")
    }

    /// Returns the names in a directory, sorted. A name with two entries comes twice.
    #[track_caller]
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = self.look(path).entries().expect("a directory");
        entries.iter().flat_map(|(name, ids)| ids.iter().map(|_| name.clone())).collect()
    }

    /// Makes a directory of root, with those above it. It may exist.
    pub fn put_dir(&mut self, path: &str) -> u32 {
        components(path).fold(ROOT, |dir, name| match self.entry(dir, name) {
            Ok(id) => id,
            Err(_) => self.create(dir, name, MODE_DIR | 0o755, User::ROOT).expect("a name for a directory"),
        })
    }

    /// Makes a file of root with these bytes, or replaces its content.
    pub fn put_file(&mut self, path: &str, bytes: impl Into<Vec<u8>>) -> u32 {
        self.put_bytes(path, MODE_FILE | 0o644, bytes.into())
    }

    /// Makes a symlink of root.
    pub fn put_symlink(&mut self, path: &str, target: impl Into<Vec<u8>>) -> u32 {
        self.put_bytes(path, MODE_SYMLINK | 0o777, target.into())
    }

    fn put_bytes(&mut self, path: &str, mode: u16, bytes: Vec<u8>) -> u32 {
        let (dir, name) = self.parent(path);
        let id = self.entry(dir, &name).or_else(|_| self.create(dir, &name, mode, User::ROOT)).expect("a name");
        self.node_mut(id).expect("just made").content = Content::Bytes(bytes);
        id
    }

    /// Gives a file a second name.
    pub fn put_link(&mut self, old: &str, new: &str) {
        let id = self.at(old);
        let (dir, name) = self.parent(new);
        self.enter(dir, &name, id).expect("a directory");
    }

    fn parent(&mut self, path: &str) -> (u32, String) {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.put_dir(dir), name.to_owned())
    }

    /// Returns all objects at and below `path`, by path; the top ("") comes first. The time of last
    /// access is left out, since a read changes it.
    pub fn snapshot(&self, path: &str) -> BTreeMap<String, (u32, Node)> {
        let mut found = BTreeMap::new();
        self.take_down(self.at(path), String::new(), &mut found);
        found
    }

    fn take_down(&self, id: u32, path: String, found: &mut BTreeMap<String, (u32, Node)>) {
        let node = self.node(id).expect("an entry has a node");
        for (name, ids) in node.entries().into_iter().flatten() {
            ids.iter().for_each(|id| self.take_down(*id, join(&path, name), found));
        }
        found.insert(path, (id, Node { atime: (0, 0), ..node.clone() }));
    }
}

/// Extends a file to at least `size` bytes.
fn grow(node: &mut Node, size: u64) -> Result<()> {
    if size > BLOCKS * BLOCK {
        return Err(Error::new(ENOSPC));
    }
    let bytes = node.bytes_mut()?;
    if bytes.len() < size as usize {
        bytes.resize(size as usize, 0);
    }
    Ok(())
}

/// Whether a path is in another scheme than this one.
fn names_another(path: &RedoxPath<'_>, scheme: &str) -> bool {
    path.get_scheme().is_some_and(|named| named.as_ref() != scheme)
}

/// Iterates over the names of a path.
fn components(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !matches!(*name, "" | "."))
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

/// Resolves `.` and `..` in the text of a path, and removes the slashes at its ends.
pub fn canonical(path: &str) -> String {
    let mut names = Vec::new();
    for name in components(path) {
        match name {
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

/// Returns the permission bits of a mode.
pub fn permissions(mode: u16) -> u16 {
    mode & MODE_PERM
}

fn now() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_secs(), now.subsec_nanos())
}
