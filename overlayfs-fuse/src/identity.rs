//! Owners as the layers have them and as those who use the mount see them: `uidmapping`,
//! `gidmapping`, `squash_to_*`.
//!
//! Every id that comes from a layer goes through [`Identity::shown`] before anybody is told, and
//! every id that comes from a caller through [`Identity::of_new`] or [`Identity::to_set`] before a
//! layer is. With no option given all of them answer what they are asked.

use overlayfs::errno::{EINVAL, EOVERFLOW, Error, Result};
use overlayfs::layer::Owner;

/// What the kernel is told of an owner that is not mapped: no id. It shows 65534, the overflow id,
/// lets nobody change the object, as on a mount with mapped ids, and no user has it.
pub const UNMAPPED: u32 = u32::MAX;

/// What an id in an ACL is shown as that is not mapped: the last one there is. The kernel takes no
/// ACL with [`UNMAPPED`] in it, and 65534 may be a user's.
const UNMAPPED_IN_ACL: u32 = u32::MAX - 1;

/// What the system calls who has no id in the user namespace of the daemon, in an ACL of a layer.
const STRANGER: u32 = u32::MAX;

/// The tags of the entries of a POSIX ACL that name somebody, and of that for all others.
const ACL_OTHER: u16 = 0x20;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;
/// The sizes of the head of a POSIX ACL, as an extended attribute has it, and of one entry: tag,
/// permissions, id.
const ACL_HEAD: usize = 4;
const ACL_ENTRY: usize = 8;

/// So many ids, one after the other, and the ids as which they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first id in the layers.
    pub layer: u32,
    /// The first id as it is shown.
    pub shown: u32,
    pub length: u32,
}

/// How the ids of users, or those of groups, are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Empty: as they are.
    ranges: Vec<Range>,
}

/// How owners are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub users: IdMap,
    pub groups: IdMap,
    /// The user who is shown as the owner of everything.
    pub squash_user: Option<u32>,
    /// The group that is shown as that of everything.
    pub squash_group: Option<u32>,
}

impl IdMap {
    /// An id that is in none of the ranges is not mapped. The error is a sentence without a
    /// subject: ranges must not be empty, not reach beyond the last id, and not overlap.
    pub fn new(ranges: Vec<Range>) -> std::result::Result<Self, String> {
        for (number, range) in ranges.iter().enumerate() {
            let Range { layer, shown, length } = *range;
            if length == 0 {
                return Err(format!("has a range of no ids, {layer}:{shown}:0"));
            }
            if layer.max(shown).checked_add(length).is_none() {
                return Err(format!("has a range that goes beyond the last id, {layer}:{shown}:{length}"));
            }
            for other in &ranges[..number] {
                let apart = |one: u32, another: u32| one >= another + other.length || another >= one + length;
                if !apart(layer, other.layer) || !apart(shown, other.shown) {
                    return Err(format!(
                        "has ranges that overlap, {}:{}:{} and {layer}:{shown}:{length}",
                        other.layer, other.shown, other.length
                    ));
                }
            }
        }
        Ok(Self { ranges })
    }

    /// What an id of a layer is shown as; None if it is not mapped.
    fn shown(&self, id: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        self.ranges.iter().find_map(|range| moved(id, range.layer, range.shown, range.length))
    }

    /// The id of a layer that is shown as `id`; None if there is none.
    fn stored(&self, id: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        self.ranges.iter().find_map(|range| moved(id, range.shown, range.layer, range.length))
    }
}

/// A mode without the set-id bits of ids that the two owners do not share.
fn without_foreign(mode: u32, owner: Owner, other: Owner) -> u32 {
    let user = if owner.uid == other.uid { 0 } else { libc::S_ISUID };
    let group = if owner.gid == other.gid { 0 } else { libc::S_ISGID };
    mode & !(user | group)
}

fn moved(id: u32, from: u32, to: u32, length: u32) -> Option<u32> {
    id.checked_sub(from).filter(|distance| *distance < length).map(|distance| to + distance)
}

impl Identity {
    /// Whether everything is shown as it is.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Who is shown as the owner of what belongs to `owner` in a layer. [`UNMAPPED`] for ids that
    /// are not mapped.
    pub fn shown(&self, owner: Owner) -> Owner {
        let mapped = self.mapped(owner);
        Owner { uid: self.squash_user.unwrap_or(mapped.uid), gid: self.squash_group.unwrap_or(mapped.gid) }
    }

    /// As [`Identity::shown`], without squashing.
    fn mapped(&self, owner: Owner) -> Owner {
        Owner {
            uid: self.users.shown(owner.uid).unwrap_or(UNMAPPED),
            gid: self.groups.shown(owner.gid).unwrap_or(UNMAPPED),
        }
    }

    /// The bits of `mode` that a file which belongs to `owner` in a layer may have there: a set-id
    /// bit only where the id that it gives is shown as what it is. Who is shown as the owner can
    /// change the file, and outside the mount the bit would give him the rights of the other.
    pub fn mode_to_store(&self, owner: Owner, mode: u32) -> u32 {
        without_foreign(mode, owner, self.shown(owner))
    }

    /// The bits of the mode of a file of a layer that are shown: a set-id bit only where the id
    /// that it gives is not a squashed one. Whoever owns the file may have put the bit there, to
    /// give his own rights.
    pub fn mode_to_show(&self, owner: Owner, mode: u32) -> u32 {
        without_foreign(mode, self.mapped(owner), self.shown(owner))
    }

    /// Who owns in the layer what `caller` creates. EOVERFLOW if his ids are not mapped, as the
    /// kernel answers on a mount with mapped ids.
    pub fn of_new(&self, caller: Owner) -> Result<Owner> {
        match (self.users.stored(caller.uid), self.groups.stored(caller.gid)) {
            (Some(uid), Some(gid)) => Ok(Owner { uid, gid }),
            _ => Err(Error::new(EOVERFLOW)),
        }
    }

    /// The ids to give an object in the layer whose owner is to be shown as these; None stays None.
    /// EINVAL if they are not mapped, as chown(2) answers in a user namespace.
    pub fn to_set(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(Option<u32>, Option<u32>)> {
        let stored = |map: &IdMap, id: Option<u32>| match id {
            Some(id) => map.stored(id).map(Some).ok_or(Error::new(EINVAL)),
            None => Ok(None),
        };
        Ok((stored(&self.users, uid)?, stored(&self.groups, gid)?))
    }

    /// Changes the ids in a POSIX ACL, the value of `system.posix_acl_access` or
    /// `system.posix_acl_default`, from those of a layer to those that are shown. Squashing has no
    /// part in it: it is of owners only. What is no ACL stays as it is.
    pub fn show_acl(&self, acl: &mut [u8]) {
        for (map, id) in self.ids_in(acl) {
            let shown = map.shown(u32::from_le_bytes(*id)).unwrap_or(UNMAPPED_IN_ACL);
            *id = shown.to_le_bytes();
        }
    }

    /// The opposite of [`Identity::show_acl`]. EINVAL if an id is not mapped.
    pub fn store_acl(&self, acl: &mut [u8]) -> Result<()> {
        for (map, id) in self.ids_in(acl) {
            let stored = map.stored(u32::from_le_bytes(*id)).ok_or(Error::new(EINVAL))?;
            *id = stored.to_le_bytes();
        }
        Ok(())
    }

    /// The ids in an ACL, with the map for each.
    fn ids_in<'a>(&'a self, acl: &'a mut [u8]) -> impl Iterator<Item = (&'a IdMap, &'a mut [u8; 4])> {
        let (entries, _) = acl.get_mut(ACL_HEAD..).unwrap_or_default().as_chunks_mut::<ACL_ENTRY>();
        entries.iter_mut().filter_map(|entry| {
            let (tag, id) = entry.split_first_chunk_mut::<2>()?;
            let map = match u16::from_le_bytes(*tag) {
                ACL_USER => &self.users,
                ACL_GROUP => &self.groups,
                _ => return None,
            };
            Some((map, id.last_chunk_mut()?))
        })
    }
}

/// Takes from the ACL of a layer the entries of who has no id in the user namespace of the daemon,
/// since the kernel takes no ACL that has them. Nobody who reaches the mount is such a user. He may
/// be in such a group; so that he gains nothing, all others have no more rights than it. Answers
/// whether there was such an entry.
pub fn hide_strangers(acl: &mut Vec<u8>) -> bool {
    let Some((head, entries)) = acl.split_at_checked(ACL_HEAD) else { return false };
    let (entries, rest) = entries.as_chunks::<ACL_ENTRY>();
    let tag = |entry: &[u8; ACL_ENTRY]| u16::from_le_bytes([entry[0], entry[1]]);
    let is_stranger = |entry: &&[u8; ACL_ENTRY]| {
        matches!(tag(entry), ACL_USER | ACL_GROUP) && entry.last_chunk() == Some(&STRANGER.to_le_bytes())
    };
    let (strangers, known): (Vec<[u8; ACL_ENTRY]>, Vec<[u8; ACL_ENTRY]>) = entries.iter().partition(is_stranger);
    if strangers.is_empty() {
        return false;
    }
    let groups = strangers.iter().filter(|entry| tag(entry) == ACL_GROUP);
    let left = groups.fold(u8::MAX, |left, entry| left & entry[2]);
    let shown = known.into_iter().map(|mut entry| {
        if tag(&entry) == ACL_OTHER {
            entry[2] &= left;
        }
        entry
    });
    *acl = [head, shown.collect::<Vec<_>>().as_flattened(), rest].concat();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(ranges: &[(u32, u32, u32)]) -> IdMap {
        let ranges = ranges.iter().map(|&(layer, shown, length)| Range { layer, shown, length });
        IdMap::new(ranges.collect()).unwrap()
    }

    /// A user namespace as people have it: root is the user, everybody else is one of his
    /// subordinate ids.
    fn namespace() -> Identity {
        let ranges = [(0, 1000, 1), (1, 110_000, 65_536)];
        Identity { users: map(&ranges), groups: map(&ranges), ..Identity::default() }
    }

    fn owner(uid: u32, gid: u32) -> Owner {
        Owner { uid, gid }
    }

    #[test]
    fn without_options_ids_are_what_they_are() {
        let plain = Identity::default();
        assert!(plain.is_plain());
        for id in [0, 1, 65_534, u32::MAX - 1] {
            assert_eq!(plain.shown(owner(id, id)), owner(id, id));
            assert_eq!(plain.of_new(owner(id, id)), Ok(owner(id, id)));
            assert_eq!(plain.to_set(Some(id), Some(id)), Ok((Some(id), Some(id))));
        }
        assert!(!namespace().is_plain());
        assert!(!Identity { squash_group: Some(0), ..Identity::default() }.is_plain());
    }

    #[test]
    fn ids_are_mapped_both_ways() {
        let identity = namespace();
        for (layer, shown) in [(0, 1000), (1, 110_000), (65_536, 175_535)] {
            assert_eq!(identity.shown(owner(layer, layer)), owner(shown, shown));
            assert_eq!(identity.of_new(owner(shown, shown)), Ok(owner(layer, layer)));
            assert_eq!(identity.to_set(Some(shown), None), Ok((Some(layer), None)));
            assert_eq!(identity.to_set(None, Some(shown)), Ok((None, Some(layer))));
        }
    }

    #[test]
    fn users_and_groups_have_maps_of_their_own() {
        let identity = Identity { users: map(&[(0, 1000, 10)]), groups: map(&[(0, 2000, 10)]), ..Identity::default() };
        assert_eq!(identity.shown(owner(1, 1)), owner(1001, 2001));
        assert_eq!(identity.of_new(owner(1001, 2001)), Ok(owner(1, 1)));
        let only_users = Identity { users: map(&[(0, 1000, 10)]), ..Identity::default() };
        assert_eq!(only_users.shown(owner(1, 1)), owner(1001, 1));
        assert_eq!(only_users.to_set(Some(1001), Some(1001)), Ok((Some(1), Some(1001))));
    }

    #[test]
    fn what_is_not_mapped_is_nobodys() {
        let identity = namespace();
        assert_eq!(identity.shown(owner(65_537, 70_000)), owner(UNMAPPED, UNMAPPED));
        assert_eq!(identity.shown(owner(0, 70_000)), owner(1000, UNMAPPED));
        for unmapped in [0, 999, 1001, 109_999, 175_536, u32::MAX - 1] {
            assert_eq!(identity.of_new(owner(unmapped, 1000)), Err(Error::new(EOVERFLOW)), "{unmapped}");
            assert_eq!(identity.of_new(owner(1000, unmapped)), Err(Error::new(EOVERFLOW)), "{unmapped}");
            assert_eq!(identity.to_set(Some(unmapped), None), Err(Error::new(EINVAL)), "{unmapped}");
            assert_eq!(identity.to_set(None, Some(unmapped)), Err(Error::new(EINVAL)), "{unmapped}");
        }
        assert_eq!(identity.to_set(None, None), Ok((None, None)));
    }

    #[test]
    fn squashing_is_of_what_is_shown_only() {
        let root = Identity { squash_user: Some(0), squash_group: Some(0), ..namespace() };
        assert_eq!(root.shown(owner(7, 70_000)), owner(0, 0));
        assert_eq!(root.of_new(owner(110_000, 110_000)), Ok(owner(1, 1)));
        assert_eq!(root.to_set(Some(110_006), None), Ok((Some(7), None)));
        let user = Identity { squash_user: Some(1234), ..Identity::default() };
        assert_eq!(user.shown(owner(7, 8)), owner(1234, 8));
        assert_eq!(user.of_new(owner(7, 8)), Ok(owner(7, 8)));
    }

    #[test]
    fn set_id_bits_are_for_who_is_shown_as_what_he_is() {
        let plain = Identity::default();
        assert_eq!(plain.mode_to_store(owner(0, 7), 0o6755), 0o6755);
        assert_eq!(plain.mode_to_show(owner(0, 7), 0o6755), 0o6755);

        // A mapped id is the same user: his programs work, but outside they must not.
        let mapped = namespace();
        assert_eq!(mapped.mode_to_store(owner(0, 7), 0o6755), 0o755);
        assert_eq!(mapped.mode_to_show(owner(0, 7), 0o6755), 0o6755);
        let same = Identity { users: map(&[(0, 0, 10)]), ..Identity::default() };
        assert_eq!(same.mode_to_store(owner(7, 7), 0o6755), 0o6755);

        let squashed = Identity { squash_user: Some(1000), ..Identity::default() };
        for mode in [Identity::mode_to_store, Identity::mode_to_show] {
            assert_eq!(mode(&squashed, owner(0, 7), 0o6755), 0o2755);
            assert_eq!(mode(&squashed, owner(1000, 7), 0o6755), 0o6755);
        }
        // What is mapped to the squashed id is that user's.
        let both = Identity { squash_user: Some(1000), squash_group: Some(5), ..namespace() };
        assert_eq!(both.mode_to_show(owner(0, 0), 0o6755), 0o4755);
    }

    #[test]
    fn ranges_that_have_no_meaning() {
        let refused = |ranges: &[(u32, u32, u32)]| {
            let ranges = ranges.iter().map(|&(layer, shown, length)| Range { layer, shown, length });
            IdMap::new(ranges.collect()).unwrap_err()
        };
        assert_eq!(refused(&[(0, 0, 0)]), "has a range of no ids, 0:0:0");
        assert_eq!(refused(&[(0, 1, u32::MAX)]), "has a range that goes beyond the last id, 0:1:4294967295");
        assert_eq!(refused(&[(5, 0, 10), (14, 100, 1)]), "has ranges that overlap, 5:0:10 and 14:100:1");
        assert_eq!(refused(&[(100, 5, 10), (0, 0, 6)]), "has ranges that overlap, 100:5:10 and 0:0:6");
        map(&[(0, 0, u32::MAX)]);
        map(&[(0, 10, 5), (5, 0, 10), (15, 15, 1)]);
    }

    /// An ACL as an extended attribute has it.
    fn acl(entries: &[(u16, u32)]) -> Vec<u8> {
        let mut acl = 2_u32.to_le_bytes().to_vec();
        for (tag, id) in entries {
            acl.extend([tag.to_le_bytes(), [7, 0]].concat());
            acl.extend(id.to_le_bytes());
        }
        acl
    }

    #[test]
    fn acls_name_users_and_groups() {
        let identity = Identity { squash_user: Some(0), squash_group: Some(0), ..namespace() };
        let stored =
            acl(&[(0x01, u32::MAX), (0x02, 1), (0x04, u32::MAX), (0x08, 2), (0x10, u32::MAX), (0x20, u32::MAX)]);
        let shown = acl(&[
            (0x01, u32::MAX),
            (0x02, 110_000),
            (0x04, u32::MAX),
            (0x08, 110_001),
            (0x10, u32::MAX),
            (0x20, u32::MAX),
        ]);
        let mut value = stored.clone();
        identity.show_acl(&mut value);
        assert_eq!(value, shown);
        identity.store_acl(&mut value).unwrap();
        assert_eq!(value, stored);
        let mut unmapped = acl(&[(0x02, 70_000)]);
        assert_eq!(identity.store_acl(&mut acl(&[(0x08, 70_000)])), Err(Error::new(EINVAL)));
        identity.show_acl(&mut unmapped);
        assert_eq!(unmapped, acl(&[(0x02, UNMAPPED_IN_ACL)]));
    }

    #[test]
    fn who_has_no_id_here_is_not_shown() {
        let mut value = acl(&[(0x01, STRANGER), (0x02, 5), (0x04, STRANGER), (0x20, STRANGER)]);
        let before = value.clone();
        assert!(!hide_strangers(&mut value));
        assert_eq!(value, before, "what has no name has no id");
        let mut value = acl(&[(0x01, STRANGER), (0x02, STRANGER), (0x02, 5), (0x04, STRANGER), (0x20, STRANGER)]);
        assert!(hide_strangers(&mut value));
        assert_eq!(value, before);
        let mut value = acl(&[(0x04, STRANGER), (0x08, STRANGER), (0x20, STRANGER)]);
        value[ACL_HEAD + ACL_ENTRY + 2] = 4;
        assert!(hide_strangers(&mut value));
        let mut shown = acl(&[(0x04, STRANGER), (0x20, STRANGER)]);
        shown[ACL_HEAD + ACL_ENTRY + 2] = 4;
        assert_eq!(value, shown, "others have no more than the group");
    }

    #[test]
    fn what_is_no_acl_stays_as_it_is() {
        for length in 0..20 {
            let before = vec![0xff; length];
            let mut value = before.clone();
            hide_strangers(&mut value.clone());
            namespace().show_acl(&mut value);
            assert_eq!(namespace().store_acl(&mut value), Ok(()));
            assert_eq!(value, before);
        }
    }
}
