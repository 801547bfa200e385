//! Writes the changes between two merged trees as an archive: an OCI image layer.
//!
//! A directory in which anything changes is a member, with its own attributes, before all else in
//! it. Behind it come its deletions, and then what was added or changed, names in the order of
//! their bytes. A socket of the upper layer is left out, as if it were deleted. All content is read
//! through the merged tree, so nothing in the archive depends on how a layer stores it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::errno;
use crate::format::{self, OPAQUE};
use crate::layer::{Kind, Layer, Stat, Time, acl};
use crate::layer_tools::archive::write::Writer;
use crate::layer_tools::archive::{LABEL, Member, MemberKind, acl_text};
use crate::layer_tools::changes::{contents, matched};
use crate::layer_tools::links::Links;
use crate::layer_tools::tree::xattrs;
use crate::layer_tools::{Change, ChangeKind, Error, Progress, Views, Watch};
use crate::overlay::on_disk::{Content, Entry, Relation};
use crate::overlay::{Handle, Node, Overlay};

/// The size of a piece of content that is read at once.
const PIECE: usize = 128 << 10;

/// The most ranges of data that a file with holes is split into. Readers bound the list of them, so
/// that the last range of a file with more has its other holes as zeros.
const RANGES: usize = 1 << 14;

/// The form of files with holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holes {
    /// The archive has only the data.
    Kept,
    /// The archive has zeros. The storage of podman and others writes a layer anew from its files
    /// and its headers, and gets another digest where a file had holes.
    Zeros,
}

/// The result of an export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// The sockets, which an archive cannot have.
    pub sockets: u64,
}

/// Writes the changes from `views.below` to `views.above` to `to`. `name` stands for it in errors.
///
/// # Errors
///
/// - [`Error::At`]: an object cannot be read, the archive cannot be written, or an image layer
///   cannot say the object.
/// - [`Error::Stopped`]: `watch` wants to stop.
pub fn write_layer<L: Layer, W: Write>(
    views: &Views<L>,
    to: W,
    name: &Path,
    holes: Holes,
    watch: &dyn Watch,
) -> Result<(W, Exported), Error> {
    let Some(above) = &views.above else { return Err(Error::Refused("no layer is given".to_owned())) };
    let mut export = Export {
        views,
        above,
        watch,
        name,
        holes,
        archive: Writer::new(to),
        dirs: Vec::new(),
        links: Links::default(),
        exported: Exported::default(),
        buffer: vec![0; PIECE],
    };
    views.changes_to_apply(watch, &mut |change| export.change(change))?;
    let Export { archive, exported, .. } = export;
    let to = archive.finish().map_err(|cause| Error::at("write to", name, cause))?;
    Ok((to, exported))
}

/// An export on its way.
struct Export<'a, L: Layer, W: Write> {
    views: &'a Views<L>,
    above: &'a Overlay<L>,
    watch: &'a dyn Watch,
    name: &'a Path,
    holes: Holes,
    archive: Writer<W>,
    /// The directories from the top to the current one that are members: in the earlier tree, if it
    /// has them, and in the later one.
    dirs: Vec<Dir<L>>,
    links: Links,
    exported: Exported,
    buffer: Vec<u8>,
}

/// A directory that is a member.
struct Dir<L: Layer> {
    name: OsString,
    old: Option<Arc<Node<L>>>,
    new: Arc<Node<L>>,
}

/// Wraps the error of an object.
fn unreadable(path: &Path, error: errno::Error) -> Error {
    Error::in_tree("read", path, error)
}

/// Makes the error of an object that an image layer cannot say.
fn unsaid(path: &Path, cause: &str) -> Error {
    Error::at("export", path, io::Error::other(cause.to_owned()))
}

impl<L: Layer, W: Write> Export<'_, L, W> {
    fn change(&mut self, change: Change<L>) -> Result<(), Error> {
        let Change { path, kind, old, new, aspects: _ } = change;
        let Some(parent) = path.parent() else {
            // The top. Without other changes it need not be there.
            return match new {
                Some(new) => self.dir(Path::new(""), old, new),
                None => Ok(()),
            };
        };
        self.enter(parent)?;
        match (kind, new) {
            // Its directory has said it.
            (ChangeKind::Removed, _) | (_, None) => Ok(()),
            (_, Some(new)) if new.kind() == Kind::Dir => self.dir(&path, old, new),
            (_, Some(new)) if new.kind() == Kind::Socket => {
                self.exported.sockets += 1;
                Ok(())
            }
            (_, Some(new)) => self.object(&path, &new),
        }
    }

    /// Makes the directories on the way to `path` members, from the top on.
    fn enter(&mut self, path: &Path) -> Result<(), Error> {
        if self.dirs.is_empty() {
            let old = self.views.below.as_ref().map(|below| below.root().clone());
            self.dir(Path::new(""), old, self.above.root().clone())?;
        }
        let common = self.dirs[1..].iter().zip(path).take_while(|(dir, name)| dir.name == **name).count();
        self.dirs.truncate(common + 1);
        let mut at: PathBuf = path.iter().take(common).collect();
        for name in path.iter().skip(common) {
            at.push(name);
            let Some(Dir { old, new, .. }) = self.dirs.last() else { break };
            let new = self.above.lookup(new, name).map_err(|error| unreadable(&at, error))?;
            let old = match (&self.views.below, old) {
                (Some(below), Some(old)) => below.lookup(old, name).ok(),
                _ => None,
            };
            self.dir(&at, old, new)?;
        }
        Ok(())
    }

    /// Writes a directory and its deletions. The current directory is the one above it.
    fn dir(&mut self, path: &Path, old: Option<Arc<Node<L>>>, new: Arc<Node<L>>) -> Result<(), Error> {
        let name = path.file_name().unwrap_or_default().to_owned();
        check_name(path, &name)?;
        let stat = self.above.stat(&new).map_err(|error| unreadable(path, error))?;
        let member = self.member(path, &new, &stat, MemberKind::Dir)?;
        self.begin(&member)?;
        let old = old.filter(|old| old.kind() == Kind::Dir);
        if let (Some(below), Some(old)) = (&self.views.below, &old) {
            self.delete_in(path, (below, old), &new)?;
        }
        if path.as_os_str().is_empty() {
            self.dirs.clear();
        }
        self.dirs.push(Dir { name, old, new });
        Ok(())
    }

    /// Writes the deletions that make the entries of a directory before into those now: the mark of
    /// an opaque directory, if all of several are gone.
    fn delete_in(&mut self, path: &Path, old: (&Overlay<L>, &Arc<Node<L>>), new: &Arc<Node<L>>) -> Result<(), Error> {
        let contents = |from: &OsStr| {
            contents([Some(old), Some((self.above, new))], from).map_err(|error| unreadable(path, error))
        };
        let (mut count, mut is_opaque, mut from) = (0, true, Some(OsString::new()));
        while let Some(first) = from.take().filter(|_| is_opaque) {
            let [before, now] = contents(&first)?;
            is_opaque = gone(&before, &now).count() == before.entries.len();
            count += before.entries.len();
            from = now.next;
        }
        if is_opaque && count > 1 {
            return self.delete(path.join(OPAQUE));
        }
        from = Some(OsString::new());
        while let Some(first) = from {
            let [before, now] = contents(&first)?;
            // The form for names of any length, which every reader knows.
            let marks: Vec<_> =
                gone(&before, &now).map(|entry| format::whiteout(&entry.name, usize::MAX).name).collect();
            from = now.next;
            marks.into_iter().try_for_each(|mark| self.delete(path.join(mark)))?;
        }
        Ok(())
    }

    /// Writes a deletion. `path` has the name of the mark.
    fn delete(&mut self, path: PathBuf) -> Result<(), Error> {
        self.begin(&Member {
            path,
            kind: MemberKind::File { size: 0, data: Vec::new() },
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            atime: None,
            xattrs: BTreeMap::new(),
            acls: [None, None],
        })
    }

    /// Writes an object that is neither a directory nor a socket.
    fn object(&mut self, path: &Path, node: &Arc<Node<L>>) -> Result<(), Error> {
        check_name(path, path.file_name().unwrap_or_default())?;
        let stat = self.above.stat(node).map_err(|error| unreadable(path, error))?;
        if stat.nlink > 1
            && let Some(first) = self.links.meet(stat.ino, stat.nlink, path)
        {
            let mut member = self.member(path, node, &stat, MemberKind::Link(first))?;
            (member.xattrs, member.acls) = (BTreeMap::new(), [None, None]);
            return self.begin(&member);
        }
        let handle = self.above.open(node);
        let kind = match stat.kind {
            Kind::File => {
                let data = self.data(&handle, &stat).map_err(|error| unreadable(path, error))?;
                MemberKind::File { size: stat.size, data }
            }
            Kind::Symlink => MemberKind::Symlink(self.above.read_link(node).map_err(|error| unreadable(path, error))?),
            Kind::CharDev if stat.rdev == 0 => {
                return Err(unsaid(path, "readers of image layers take a character device 0/0 for a deletion"));
            }
            Kind::CharDev => MemberKind::CharDev(stat.rdev),
            Kind::BlockDev => MemberKind::BlockDev(stat.rdev),
            Kind::Fifo | Kind::Dir | Kind::Socket => MemberKind::Fifo,
        };
        let member = self.member(path, node, &stat, kind)?;
        self.begin(&member)?;
        match member.kind {
            MemberKind::File { data, .. } => data.into_iter().try_for_each(|range| self.copy(path, &handle, range)),
            _ => Ok(()),
        }
    }

    /// Returns the ranges of data of a file.
    fn data(&self, handle: &Handle<L>, stat: &Stat) -> errno::Result<Vec<Range<u64>>> {
        // A file that takes all its space has no holes.
        if self.holes == Holes::Zeros || stat.blocks.saturating_mul(512) >= stat.size {
            return Ok((stat.size > 0).then_some(0..stat.size).into_iter().collect());
        }
        let mut data: Vec<Range<u64>> = Vec::new();
        let mut at = 0;
        while at < stat.size {
            let Some(range) = self.above.next_data(handle, at)? else { break };
            let range = range.start.min(stat.size)..range.end.min(stat.size);
            at = range.end;
            let is_full = data.len() == RANGES;
            match data.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                Some(last) if is_full => {
                    last.end = stat.size;
                    break;
                }
                _ if range.is_empty() => break,
                _ => data.push(range),
            }
        }
        Ok(data)
    }

    /// Copies a range of a file to the archive.
    fn copy(&mut self, path: &Path, handle: &Handle<L>, range: Range<u64>) -> Result<(), Error> {
        let mut at = range.start;
        while at < range.end {
            if self.watch.wants_stop() {
                return Err(Error::Stopped);
            }
            let wanted = usize::try_from(range.end - at).map_or(PIECE, |left| left.min(PIECE));
            let piece = &mut self.buffer[..wanted];
            let read = self.above.read_at(handle, piece, at).map_err(|error| unreadable(path, error))?;
            if read == 0 {
                return Err(Error::at("read", path, io::Error::other("it became shorter meanwhile")));
            }
            let written = self.archive.data(&piece[..read]);
            written.map_err(|cause| Error::at("write to", self.name, cause))?;
            self.watch.advance(Progress { objects: 0, bytes: read as u64 });
            at += read as u64;
        }
        Ok(())
    }

    fn begin(&mut self, member: &Member) -> Result<(), Error> {
        self.archive.begin(member).map_err(|cause| Error::at("write to", self.name, cause))
    }

    /// Returns the member of an object.
    fn member(&self, path: &Path, node: &Arc<Node<L>>, stat: &Stat, kind: MemberKind) -> Result<Member, Error> {
        let xattrs = self.xattrs(node).map_err(|error| unreadable(path, error))?;
        // GNU tar restores ACLs from the text, and other programs from the attribute.
        let acls = [acl::ACCESS, acl::DEFAULT].map(|name| xattrs.get(OsStr::new(name)).map(|acl| acl_text::text(acl)));
        Ok(Member {
            path: path.to_owned(),
            kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            mtime: stat.mtime,
            // Reading changes it, and the same tree is to give the same bytes.
            atime: None,
            xattrs,
            acls,
        })
    }

    fn xattrs(&self, node: &Arc<Node<L>>) -> errno::Result<BTreeMap<OsString, Vec<u8>>> {
        let names = xattrs(self.above, node)?;
        let names = names.into_iter().filter(|name| name != LABEL);
        names.map(|name| Ok((name.clone(), self.above.xattr(node, &name)?))).collect()
    }
}

/// Returns the entries of a directory before that are not left now. A socket counts as gone, unless
/// the earlier tree has it.
fn gone<'c>(before: &'c Content, now: &'c Content) -> impl Iterator<Item = &'c Entry> {
    let is_left = |new: &Entry, relation| new.kind != Kind::Socket || relation == Relation::Same;
    matched(before, now)
        .filter_map(move |(old, new, relation)| old.filter(|_| !new.is_some_and(|new| is_left(new, relation))))
}

/// Checks that a name does not look like a deletion.
fn check_name(path: &Path, name: &OsStr) -> Result<(), Error> {
    match format::is_reserved(name) {
        true => Err(unsaid(path, "image layers take a name that begins with .wh. for a deletion")),
        false => Ok(()),
    }
}
