//! Owners in the layers, and owners that users of the mount see: `uidmapping`, `gidmapping`,
//! `squash_to_*`.
//!
//! Every id of a layer passes [`Identity::shown`] before an answer has it. Every id of a caller
//! passes [`Identity::of_new`] or [`Identity::to_set`] before a layer gets it. Without options all
//! of them return their argument.

use overlayfs::errno::{EINVAL, EOVERFLOW, Error, Result};
use overlayfs::layer::Owner;
use overlayfs::layer::acl::{self, Entry};
use overlayfs::overlay::ownership::{SET_GID, SET_UID};

/// The id that the kernel gets for an owner that is not mapped: no id. The kernel shows 65534, the
/// overflow id, and lets no caller change the object, as on a mount with mapped ids. No user has
/// this id.
pub const UNMAPPED: u32 = u32::MAX;

/// The id that an ACL shows in place of one that is not mapped: the last one. The kernel takes no
/// ACL with [`UNMAPPED`] in it, and 65534 may be the id of a user.
const UNMAPPED_IN_ACL: u32 = u32::MAX - 1;

/// The id of a *stranger* in an ACL of a layer. The system shows it for a user or group that has no
/// id in the user namespace of the daemon.
const STRANGER: u32 = u32::MAX;

/// A range of ids, and the ids that the mount shows for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first id in the layers.
    pub layer: u32,
    /// The first id as it is shown.
    pub shown: u32,
    /// The number of ids.
    pub length: u32,
}

/// How the mount shows the ids of users, or those of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Empty: each id shows as it is.
    ranges: Vec<Range>,
}

/// How the mount shows owners.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The ids of users.
    pub users: IdMap,
    /// The ids of groups.
    pub groups: IdMap,
    /// The user that the mount shows as the owner of all objects.
    pub squash_user: Option<u32>,
    /// The group that the mount shows for all objects.
    pub squash_group: Option<u32>,
}

impl IdMap {
    /// Makes a map of these ranges. An id in none of them is not mapped. The ranges must not be
    /// empty, pass the last id, or overlap.
    ///
    /// # Errors
    ///
    /// - A sentence without a subject names the range that does not fit.
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

    /// Returns the id that the mount shows for an id of a layer. None: it is not mapped.
    fn shown(&self, id: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        self.ranges.iter().find_map(|range| moved(id, range.layer, range.shown, range.length))
    }

    /// Returns the id of a layer that the mount shows as `id`. None: there is none.
    fn stored(&self, id: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(id);
        }
        self.ranges.iter().find_map(|range| moved(id, range.shown, range.layer, range.length))
    }
}

/// Removes the set-id bits of ids that the two owners do not share.
fn without_foreign(mode: u32, owner: Owner, other: Owner) -> u32 {
    let user = if owner.uid == other.uid { 0 } else { SET_UID };
    let group = if owner.gid == other.gid { 0 } else { SET_GID };
    mode & !(user | group)
}

fn moved(id: u32, from: u32, to: u32, length: u32) -> Option<u32> {
    id.checked_sub(from).filter(|distance| *distance < length).map(|distance| to + distance)
}

impl Identity {
    /// Whether all owners show as they are.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the owner that the mount shows for `owner` of a layer, with [`UNMAPPED`] for ids
    /// that are not mapped.
    pub fn shown(&self, owner: Owner) -> Owner {
        let mapped = self.mapped(owner);
        Owner { uid: self.squash_user.unwrap_or(mapped.uid), gid: self.squash_group.unwrap_or(mapped.gid) }
    }

    /// Maps an owner without squashing.
    fn mapped(&self, owner: Owner) -> Owner {
        Owner {
            uid: self.users.shown(owner.uid).unwrap_or(UNMAPPED),
            gid: self.groups.shown(owner.gid).unwrap_or(UNMAPPED),
        }
    }

    /// Returns the bits of `mode` that a file of `owner` may have in a layer. A set-id bit stays
    /// only if its id shows as itself. The shown owner can change the file. Outside the mount, the
    /// bit would give that user the rights of the owner in the layer.
    pub fn mode_to_store(&self, owner: Owner, mode: u32) -> u32 {
        without_foreign(mode, owner, self.shown(owner))
    }

    /// Returns the bits of the mode of a file of a layer that the mount shows. A set-id bit shows
    /// only if its id is not a squashed one. The owner in the layer may have set the bit, to give
    /// its own rights.
    pub fn mode_to_show(&self, owner: Owner, mode: u32) -> u32 {
        without_foreign(mode, self.mapped(owner), self.shown(owner))
    }

    /// Returns the owner in the layer of an object that `caller` creates.
    ///
    /// # Errors
    ///
    /// - EOVERFLOW: the ids of the caller are not mapped. The kernel returns it on a mount with
    ///   mapped ids.
    pub fn of_new(&self, caller: Owner) -> Result<Owner> {
        match (self.users.stored(caller.uid), self.groups.stored(caller.gid)) {
            (Some(uid), Some(gid)) => Ok(Owner { uid, gid }),
            _ => Err(Error::new(EOVERFLOW)),
        }
    }

    /// Returns the ids to set in the layer, so that the mount shows these. None stays None.
    ///
    /// # Errors
    ///
    /// - EINVAL: an id is not mapped. chown(2) returns it in a user namespace.
    pub fn to_set(&self, uid: Option<u32>, gid: Option<u32>) -> Result<(Option<u32>, Option<u32>)> {
        let stored = |map: &IdMap, id: Option<u32>| match id {
            Some(id) => map.stored(id).map(Some).ok_or(Error::new(EINVAL)),
            None => Ok(None),
        };
        Ok((stored(&self.users, uid)?, stored(&self.groups, gid)?))
    }

    /// Replaces the ids of a layer in a POSIX ACL by those that the mount shows. The ACL is the
    /// value of `system.posix_acl_access` or `system.posix_acl_default`. Squashing does not apply:
    /// it is for owners only. Data that are no ACL stay as they are.
    pub fn show_acl(&self, acl: &mut [u8]) {
        for (map, id) in self.ids_in(acl) {
            let shown = map.shown(u32::from_le_bytes(*id)).unwrap_or(UNMAPPED_IN_ACL);
            *id = shown.to_le_bytes();
        }
    }

    /// Replaces the shown ids in a POSIX ACL by those of the layer.
    ///
    /// # Errors
    ///
    /// - EINVAL: an id is not mapped.
    pub fn store_acl(&self, acl: &mut [u8]) -> Result<()> {
        for (map, id) in self.ids_in(acl) {
            let stored = map.stored(u32::from_le_bytes(*id)).ok_or(Error::new(EINVAL))?;
            *id = stored.to_le_bytes();
        }
        Ok(())
    }

    /// Iterates over the ids in an ACL, with the map for each.
    fn ids_in<'a>(&'a self, acl: &'a mut [u8]) -> impl Iterator<Item = (&'a IdMap, &'a mut [u8; 4])> {
        acl::entries_mut(acl).iter_mut().filter_map(|entry| {
            let map = match acl::tag(entry) {
                acl::USER => &self.users,
                acl::GROUP => &self.groups,
                _ => return None,
            };
            Some((map, entry.last_chunk_mut()?))
        })
    }
}

/// Removes the entries of strangers from the ACL of a layer, since the kernel takes no ACL that has
/// them. No program that reaches the mount is such a user. But it may be in such a group. So that
/// it gains nothing, all others get no more rights than the group had. Returns whether there was
/// such an entry.
pub fn hide_strangers(acl: &mut Vec<u8>) -> bool {
    let Some((header, entries)) = acl.split_at_checked(acl::HEADER) else { return false };
    let (entries, rest) = entries.as_chunks();
    let is_stranger = |entry: &&Entry| {
        matches!(acl::tag(entry), acl::USER | acl::GROUP) && entry.last_chunk() == Some(&STRANGER.to_le_bytes())
    };
    let (strangers, known): (Vec<Entry>, Vec<Entry>) = entries.iter().partition(is_stranger);
    if strangers.is_empty() {
        return false;
    }
    let groups = strangers.iter().filter(|entry| acl::tag(entry) == acl::GROUP);
    let left = groups.fold(u8::MAX, |left, entry| left & entry[2]);
    let shown = known.into_iter().map(|mut entry| {
        if acl::tag(&entry) == acl::OTHER {
            entry[2] &= left;
        }
        entry
    });
    *acl = [header, shown.collect::<Vec<_>>().as_flattened(), rest].concat();
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(ranges: &[(u32, u32, u32)]) -> IdMap {
        let ranges = ranges.iter().map(|&(layer, shown, length)| Range { layer, shown, length });
        IdMap::new(ranges.collect()).unwrap()
    }

    /// A usual user namespace: root is the user, every other id is one of the user's subordinate
    /// ids.
    fn namespace() -> Identity {
        let ranges = [(0, 1000, 1), (1, 110_000, 65_536)];
        Identity { users: map(&ranges), groups: map(&ranges), ..Identity::default() }
    }

    fn owner(uid: u32, gid: u32) -> Owner {
        Owner { uid, gid }
    }

    #[test]
    fn without_options_ids_stay() {
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
    fn ids_that_are_not_mapped_belong_to_no_user() {
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
    fn squashing_changes_only_shown_owners() {
        let root = Identity { squash_user: Some(0), squash_group: Some(0), ..namespace() };
        assert_eq!(root.shown(owner(7, 70_000)), owner(0, 0));
        assert_eq!(root.of_new(owner(110_000, 110_000)), Ok(owner(1, 1)));
        assert_eq!(root.to_set(Some(110_006), None), Ok((Some(7), None)));
        let user = Identity { squash_user: Some(1234), ..Identity::default() };
        assert_eq!(user.shown(owner(7, 8)), owner(1234, 8));
        assert_eq!(user.of_new(owner(7, 8)), Ok(owner(7, 8)));
    }

    #[test]
    fn set_id_bits_need_an_id_that_shows_as_itself() {
        let plain = Identity::default();
        assert_eq!(plain.mode_to_store(owner(0, 7), 0o6755), 0o6755);
        assert_eq!(plain.mode_to_show(owner(0, 7), 0o6755), 0o6755);

        // A mapped id is the same user: its programs work here, but they must not work outside.
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
        // An id that is mapped to the squashed id belongs to that user.
        let both = Identity { squash_user: Some(1000), squash_group: Some(5), ..namespace() };
        assert_eq!(both.mode_to_show(owner(0, 0), 0o6755), 0o4755);
    }

    #[test]
    fn ranges_without_a_meaning_are_refused() {
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

    /// Makes an ACL in the format of the extended attribute.
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
    fn an_id_that_is_not_mapped_is_hidden() {
        let mut value = acl(&[(0x01, STRANGER), (0x02, 5), (0x04, STRANGER), (0x20, STRANGER)]);
        let before = value.clone();
        assert!(!hide_strangers(&mut value));
        assert_eq!(value, before, "only named entries have an id");
        let mut value = acl(&[(0x01, STRANGER), (0x02, STRANGER), (0x02, 5), (0x04, STRANGER), (0x20, STRANGER)]);
        assert!(hide_strangers(&mut value));
        assert_eq!(value, before);
        let mut value = acl(&[(0x04, STRANGER), (0x08, STRANGER), (0x20, STRANGER)]);
        value[acl::HEADER + acl::ENTRY + 2] = 4;
        assert!(hide_strangers(&mut value));
        let mut shown = acl(&[(0x04, STRANGER), (0x20, STRANGER)]);
        shown[acl::HEADER + acl::ENTRY + 2] = 4;
        assert_eq!(value, shown, "others have no more than the group");
    }

    #[test]
    fn data_that_are_no_acl_stay() {
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
