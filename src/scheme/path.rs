//! Paths: from the start of a request to the name at the end.
//!
//! This file resolves symlinks, since a scheme gets whole paths. A target is relative to the
//! directory of the symlink. A target that begins with `/` starts at the top of the tree, as in
//! redoxfs. `/scheme/NAME/…` starts there too if NAME is this scheme, and leads out if it is
//! another. `..` is the real parent of a directory, and the top is its own parent. So no path leads
//! outside.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::iter;
use std::sync::Arc;

use crate::errno::{EINVAL, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR, EXDEV, Error, Result};

use super::access::{Caller, SEARCH};
use super::changes::Numbers;
use crate::layer::{Kind, Layer};
use crate::overlay::{Node, Overlay};

/// The longest path of a request in bytes. The kernel passes no longer one.
pub const PATH_MAX: usize = 4096;
/// How many symlinks one path may pass.
const LINKS_MAX: usize = 40;

/// The treatment of a symlink at the end of a path. A walk follows all symlinks before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// The path means the target of the symlink.
    Follow,
    /// The path means the symlink, unless a slash follows it.
    Keep,
    /// The path means the name, with any object or none.
    Name,
}

/// The end of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Name(String),
    Dot,
    DotDot,
    /// Nothing follows the start: the path is empty, or names the top of the tree.
    Start,
}

/// The place in the tree to which a path leads.
pub struct Resolved<L: Layer> {
    /// The directory of the name, or the last directory if the path ends in no name.
    pub dir: Arc<Node<L>>,
    pub end: End,
    /// The object at the place. None: nothing has the name.
    pub node: Option<Arc<Node<L>>>,
    /// A slash follows the name, so only a directory matches.
    pub slash: bool,
}

impl<L: Layer> Resolved<L> {
    /// Returns the nodes of a change of the name: the directory, and the object with the name.
    pub fn nodes(&self) -> Numbers {
        iter::once(&self.dir).chain(&self.node).map(|node| node.id()).collect()
    }
}

/// The place to which a path leads.
pub enum Walked<L: Layer> {
    Here(Resolved<L>),
    /// To this path in another scheme.
    Elsewhere(String),
}

impl<L: Layer> Walked<L> {
    /// Returns the place, for operations within this scheme.
    ///
    /// # Errors
    ///
    /// - EXDEV: the path leads to another scheme.
    pub fn here(self) -> Result<Resolved<L>> {
        match self {
            Self::Here(place) => Ok(place),
            Self::Elsewhere(_) => Err(Error::new(EXDEV)),
        }
    }
}

/// Walks `path` from `start`. The caller needs the right to search every directory on the way.
///
/// # Errors
///
/// - EACCES: the caller may not search a directory.
/// - ELOOP: the path passes too many symlinks.
/// - ENAMETOOLONG: the path is too long.
/// - ENOENT: a directory on the way is missing. The last name may be missing.
/// - ENOTDIR: an object on the way is no directory.
/// - EINVAL: the path contains NUL, or the target of a symlink is not UTF-8.
pub fn walk<L: Layer>(
    overlay: &Overlay<L>,
    scheme: &str,
    start: &Arc<Node<L>>,
    path: &str,
    last: Last,
    caller: Caller,
) -> Result<Walked<L>> {
    check_path(path)?;
    let mut dir = Arc::clone(start);
    let mut end = End::Start;
    let mut links = 0;
    let mut whole = Cow::Borrowed(path);
    let mut at = 0;
    while let Some((name, tail)) = first_name(&whole[at..]) {
        let is_last = tail.trim_start_matches('/').is_empty();
        let slash = !tail.is_empty();
        if dir.kind() != Kind::Dir {
            return Err(Error::new(ENOTDIR));
        }
        if !caller.is_root() {
            caller.require(&overlay.stat_for_access(&dir)?, SEARCH)?;
        }
        let behind = whole.len() - tail.len();
        if name == "." || name == ".." {
            end = if name == "." { End::Dot } else { End::DotDot };
            if end == End::DotDot {
                dir = parent(overlay, dir)?;
            }
            at = behind;
            continue;
        }

        let node = match overlay.lookup(&dir, OsStr::new(name)) {
            Err(error) if error.errno == ENOENT && is_last => None,
            found => Some(found?),
        };
        let follow = !is_last || last == Last::Follow || (last == Last::Keep && slash);
        match node {
            Some(link) if follow && link.kind() == Kind::Symlink => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Error::new(ELOOP));
                }
                whole = match follow_link(overlay, scheme, &link, tail)? {
                    Followed::Elsewhere(path) => return Ok(Walked::Elsewhere(path)),
                    Followed::FromTop(path) => {
                        dir = Arc::clone(overlay.root());
                        Cow::Owned(path)
                    }
                    Followed::Relative(path) => Cow::Owned(path),
                };
                (at, end) = (0, End::Start);
            }
            node if is_last => {
                if slash && last != Last::Name && node.as_ref().is_some_and(|node| node.kind() != Kind::Dir) {
                    return Err(Error::new(ENOTDIR));
                }
                return Ok(Walked::Here(Resolved { end: End::Name(name.to_owned()), dir, node, slash }));
            }
            Some(node) => {
                dir = node;
                at = behind;
            }
            None => return Err(Error::new(ENOENT)),
        }
    }
    Ok(Walked::Here(Resolved { node: Some(Arc::clone(&dir)), dir, end, slash: false }))
}

/// Checks the text of a path.
///
/// # Errors
///
/// - ENAMETOOLONG: it is too long.
/// - EINVAL: it contains NUL.
fn check_path(path: &str) -> Result<()> {
    if path.len() > PATH_MAX {
        return Err(Error::new(ENAMETOOLONG));
    }
    if path.contains('\0') { Err(Error::new(EINVAL)) } else { Ok(()) }
}

/// The path on which a walk goes on after a symlink.
enum Followed {
    /// In another scheme.
    Elsewhere(String),
    /// From the top of this scheme.
    FromTop(String),
    /// From the directory of the symlink.
    Relative(String),
}

/// Returns where the walk goes on after a symlink that `tail` follows.
///
/// # Errors
///
/// - ENOENT: the target is empty.
/// - EINVAL: the target is not UTF-8.
fn follow_link<L: Layer>(overlay: &Overlay<L>, scheme: &str, link: &Arc<Node<L>>, tail: &str) -> Result<Followed> {
    let target = overlay.read_link(link)?;
    let target = target.to_str().ok_or(Error::new(EINVAL))?;
    Ok(match parse_target(target, scheme) {
        Target::Nowhere => return Err(Error::new(ENOENT)),
        Target::Elsewhere => Followed::Elsewhere(format!("{target}{tail}")),
        Target::FromTop(target) => Followed::FromTop(format!("{target}{tail}")),
        Target::Relative(target) => Followed::Relative(format!("{target}{tail}")),
    })
}

/// Returns the directory above `dir`; the top is its own parent.
///
/// # Errors
///
/// - ENOENT: `dir` was removed.
fn parent<L: Layer>(overlay: &Overlay<L>, dir: Arc<Node<L>>) -> Result<Arc<Node<L>>> {
    if dir.id() == overlay.root().id() {
        return Ok(dir);
    }
    overlay.parent(&dir).map(|(parent, _)| parent).ok_or(Error::new(ENOENT))
}

/// Splits the first component off a path. The rest is empty or begins with a slash.
fn first_name(path: &str) -> Option<(&str, &str)> {
    let path = path.trim_start_matches('/');
    let end = path.find('/').unwrap_or(path.len());
    (end > 0).then(|| path.split_at(end))
}

/// The kind of a symlink's target.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    /// An empty target names nothing.
    Nowhere,
    Elsewhere,
    FromTop(&'a str),
    Relative(&'a str),
}

fn parse_target<'a>(target: &'a str, scheme: &str) -> Target<'a> {
    if target.is_empty() {
        return Target::Nowhere;
    }
    let Some(path) = target.strip_prefix('/') else {
        return Target::Relative(target);
    };
    match path.strip_prefix("scheme") {
        Some("") => Target::Elsewhere,
        Some(rest) if rest.starts_with('/') => match rest[1..].strip_prefix(scheme) {
            Some(path) if path.is_empty() || path.starts_with('/') => Target::FromTop(path),
            _ => Target::Elsewhere,
        },
        _ => Target::FromTop(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components() {
        assert_eq!(first_name(""), None);
        assert_eq!(first_name("///"), None);
        assert_eq!(first_name("a"), Some(("a", "")));
        assert_eq!(first_name("//a//b/"), Some(("a", "//b/")));
        assert_eq!(first_name("a/"), Some(("a", "/")));
    }

    #[test]
    fn targets() {
        let parse = |target| parse_target(target, "overlay");
        assert_eq!(parse(""), Target::Nowhere);
        assert_eq!(parse("a/b"), Target::Relative("a/b"));
        assert_eq!(parse("../a"), Target::Relative("../a"));
        assert_eq!(parse("a:b"), Target::Relative("a:b"));
        assert_eq!(parse("/a"), Target::FromTop("a"));
        assert_eq!(parse("/schemes/a"), Target::FromTop("schemes/a"));
        assert_eq!(parse("/scheme/overlay/a"), Target::FromTop("/a"));
        assert_eq!(parse("/scheme/overlay"), Target::FromTop(""));
        assert_eq!(parse("/scheme/overlay2/a"), Target::Elsewhere);
        assert_eq!(parse("/scheme/file/a"), Target::Elsewhere);
        assert_eq!(parse("/scheme/"), Target::Elsewhere);
        assert_eq!(parse("/scheme"), Target::Elsewhere);
    }
}
