//! A handover as bytes, for a daemon in another process.
//!
//! The bytes have no version of their own. The sender says which version of the program
//! they are for.

use std::ffi::OsString;
use std::sync::Arc;

use super::{Handover, Named, Nameless, Plan};
use crate::errno::{EINVAL, Error};
use crate::layer::{Access, Fixed, Kind, Layer, Result, Stat, Time};
use crate::overlay::Overlay;
use crate::overlay::node::{LinkCount, Node};
use crate::packed::{Packer, Unpacker};

/// The kinds and accesses by their numbers in the bytes.
const KINDS: [Kind; 7] =
    [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDev, Kind::BlockDev];
pub(super) const ACCESSES: [Access; 4] = [Access::Read, Access::ReadWrite, Access::Append, Access::Attributes];

impl<L: Layer> Overlay<L> {
    /// Packs the objects of a plan for an overlay in another process. `keep` takes an open file,
    /// and returns the number by which [`Handover::unpack`] asks for it. This overlay stays as it
    /// is, and may go on.
    ///
    /// # Errors
    ///
    /// Those of `keep`.
    pub fn pack(&self, plan: &Plan<L>, keep: &mut dyn FnMut(&L::File) -> Result<u64>) -> Result<Vec<u8>> {
        let mut to = Packer::default();
        to.number(self.next_id.load(std::sync::atomic::Ordering::Relaxed));
        to.option(self.shown_ctime(&self.root.state.lock()), pack_time);
        to.list(plan.named.iter(), |to, Named { id, ino, parent, path, wanted }| {
            to.numbers(&[*id, *ino, *parent, (*wanted).into()]);
            to.text(path.as_os_str());
        });
        to.number(plan.nameless.len() as u64);
        for (node, ino) in &plan.nameless {
            self.pack_nameless(node, *ino, &mut to, keep)?;
        }
        Ok(to.done())
    }

    fn pack_nameless(
        &self,
        node: &Arc<Node<L>>,
        ino: u64,
        to: &mut Packer,
        keep: &mut dyn FnMut(&L::File) -> Result<u64>,
    ) -> Result<()> {
        let state = node.state.lock();
        self.nameless(node, &state, ino).pack(to);
        let file = match &state.file {
            Some(open) => Some((keep(&open.file)?, open.access)),
            None => None,
        };
        to.option(file, |to, (file, access)| to.numbers(&[file, number_of(&ACCESSES, access)]));
        Ok(())
    }
}

impl<L: Layer> Nameless<L> {
    /// Packs all but its open file.
    pub(super) fn pack(&self, to: &mut Packer) {
        let Nameless { id, ino, kind, upper, attr, ctime, links, target, origin, orphan, work_name, file: _ } = self;
        to.numbers(&[*id, *ino, number_of(&KINDS, *kind), (*upper).into()]);
        to.option(*attr, pack_stat);
        to.option(*ctime, pack_time);
        let (meaning, count) = match *links {
            LinkCount::OfLayer => (0, 0),
            LinkCount::Merged => (1, 0),
            LinkCount::Counted(count) => (2, count),
        };
        to.numbers(&[meaning, count.into()]);
        to.option(target.as_deref(), Packer::text);
        to.option(*origin, |to, origin| to.numbers(&[origin as u64, (origin >> 64) as u64]));
        to.option(orphan.as_ref(), |to, (level, names)| {
            to.number(*level as u64);
            to.list(names.iter(), |to, name| to.text(name));
        });
        to.option(work_name.as_deref(), Packer::text);
    }
}

impl<L: Layer> Handover<L> {
    /// Returns what [`Overlay::pack`] packed. `take` returns the open file with a number; None:
    /// there is none.
    ///
    /// # Errors
    ///
    /// - EINVAL: the bytes are no handover, or an open file is missing.
    pub fn unpack(bytes: &[u8], take: &mut dyn FnMut(u64) -> Option<L::File>) -> Result<Self> {
        let mut from = Unpacker::new(bytes);
        let next_id = from.number()?;
        let root_ctime = from.option(time)?;
        let named = from.list(|from| {
            let (id, ino, parent, wanted) = (from.number()?, from.number()?, from.number()?, from.flag()?);
            Ok(Named { id, ino, parent, path: from.text()?.into(), wanted })
        })?;
        let nameless = from.list(|from| nameless(from, take))?;
        from.end()?;
        Ok(Handover { named, nameless, moved: false, next_id, root_ctime })
    }
}

fn nameless<L: Layer>(from: &mut Unpacker<'_>, take: &mut dyn FnMut(u64) -> Option<L::File>) -> Result<Nameless<L>> {
    let (id, ino, kind, upper) = (from.number()?, from.number()?, one_of(&KINDS, from)?, from.flag()?);
    let (attr, ctime) = (from.option(stat)?, from.option(time)?);
    let links = match (from.number()?, from.small()?) {
        (0, _) => LinkCount::OfLayer,
        (1, _) => LinkCount::Merged,
        (2, count) => LinkCount::Counted(count),
        _ => return Err(Error::new(EINVAL)),
    };
    let target = from.option(Unpacker::text)?.map(OsString::into_boxed_os_str);
    let origin = from.option(|from| Ok(u128::from(from.number()?) | u128::from(from.number()?) << 64))?;
    let orphan = from.option(|from| Ok((from.small()?, from.list(Unpacker::text)?)))?;
    let work_name = from.option(Unpacker::text)?;
    let file = from.option(|from| {
        let file = take(from.number()?).ok_or(Error::new(EINVAL))?;
        Ok((file, one_of(&ACCESSES, from)?))
    })?;
    Ok(Nameless { id, ino, kind, upper, attr, ctime, links, target, origin, orphan, work_name, file })
}

pub(super) fn number_of<T: PartialEq>(all: &[T], value: T) -> u64 {
    all.iter().position(|known| *known == value).unwrap_or(all.len()) as u64
}

fn one_of<T: Copy>(all: &[T], from: &mut Unpacker<'_>) -> Result<T> {
    all.get(from.small::<usize>()?).copied().ok_or(Error::new(EINVAL))
}

fn pack_time(to: &mut Packer, Time { sec, nsec }: Time) {
    to.numbers(&[sec.cast_unsigned(), nsec.into()]);
}

fn time(from: &mut Unpacker<'_>) -> Result<Time> {
    Ok(Time { sec: from.number()?.cast_signed(), nsec: from.small()? })
}

fn pack_stat(to: &mut Packer, stat: Stat) {
    let Stat { dev, ino, kind, mode, nlink, uid, gid, rdev, size, blksize, blocks, .. } = stat;
    let Stat { atime, mtime, ctime, fixed, generation, .. } = stat;
    to.numbers(&[dev, ino, number_of(&KINDS, kind), mode.into(), nlink.into(), uid.into(), gid.into()]);
    to.numbers(&[rdev, size, blksize.into(), blocks]);
    [atime, mtime, ctime].into_iter().for_each(|time| pack_time(to, time));
    to.numbers(&[fixed.immutable.into(), fixed.append.into(), generation.into()]);
}

fn stat(from: &mut Unpacker<'_>) -> Result<Stat> {
    // The fields come in the order of the type, which is that of their evaluation.
    Ok(Stat {
        dev: from.number()?,
        ino: from.number()?,
        kind: one_of(&KINDS, from)?,
        mode: from.small()?,
        nlink: from.small()?,
        uid: from.small()?,
        gid: from.small()?,
        rdev: from.number()?,
        size: from.number()?,
        blksize: from.small()?,
        blocks: from.number()?,
        atime: time(from)?,
        mtime: time(from)?,
        ctime: time(from)?,
        fixed: Fixed { immutable: from.flag()?, append: from.flag()? },
        generation: from.small()?,
    })
}
