//! A map of very many small entries, which takes little more memory than they do.
//!
//! Two sorted arrays have most entries: the keys and their values, so that neither pads the other.
//! A tree has the entries that changed since the arrays were made. When they are a small part of
//! all, they move into the arrays. So an entry is moved some times in its life, and a lookup is a
//! binary search.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// The entries that the tree may have in any case.
const CHANGED_MIN: usize = 1024;
/// The part of the entries that the tree may have.
const CHANGED_PART: usize = 32;

/// The map.
pub struct CompactMap<K, V> {
    /// In their order.
    keys: Vec<K>,
    /// The value of each key.
    values: Vec<V>,
    /// What differs from the arrays. None: the entry is gone.
    changed: BTreeMap<K, Option<V>>,
    len: usize,
}

impl<K, V> Default for CompactMap<K, V> {
    fn default() -> Self {
        CompactMap { keys: Vec::new(), values: Vec::new(), changed: BTreeMap::new(), len: 0 }
    }
}

impl<K: Copy + Ord, V: Copy> FromIterator<(K, V)> for CompactMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = CompactMap::default();
        // Of those with one key the last counts.
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: Copy + Ord, V: Copy> CompactMap<K, V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, key: K) -> Option<V> {
        if let Some(changed) = self.changed.get(&key) {
            return *changed;
        }
        let at = self.keys.binary_search(&key).ok()?;
        Some(self.values[at])
    }

    pub fn contains(&self, key: K) -> bool {
        self.get(key).is_some()
    }

    /// Returns the entries with a key in this range, in any order.
    pub fn within(&self, range: RangeInclusive<K>) -> impl Iterator<Item = (K, V)> {
        let end = *range.end();
        let start = self.keys.partition_point(|key| key < range.start());
        let unchanged = self.keys[start..].iter().zip(&self.values[start..]).take_while(move |(key, _)| **key <= end);
        let unchanged = unchanged.filter(|(key, _)| !self.changed.contains_key(key)).map(|(key, value)| (*key, *value));
        unchanged.chain(self.changed.range(range).filter_map(|(key, value)| Some((*key, (*value)?))))
    }

    /// Returns the value that the key had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let old = self.get(key);
        self.len += usize::from(old.is_none());
        self.change(key, Some(value));
        old
    }

    /// Returns the value that the key had.
    pub fn remove(&mut self, key: K) -> Option<V> {
        let old = self.get(key)?;
        self.len -= 1;
        self.change(key, None);
        Some(old)
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Keeps the entries of which `keeps` is true.
    pub fn retain(&mut self, mut keeps: impl FnMut(K, V) -> bool) {
        self.merge();
        self.retain_mut(|key, value| keeps(key, *value));
        self.len = self.keys.len();
    }

    /// Returns all entries, by key.
    pub fn sorted(&mut self) -> impl Iterator<Item = (K, V)> {
        self.merge();
        self.keys.iter().copied().zip(self.values.iter().copied())
    }

    /// Returns all keys in their order, and their values.
    pub fn into_sorted(mut self) -> (Vec<K>, Vec<V>) {
        self.merge();
        (self.keys, self.values)
    }

    fn change(&mut self, key: K, value: Option<V>) {
        let most = CHANGED_MIN.max(self.keys.len() / CHANGED_PART);
        if let Some(value) = value
            && self.changed.is_empty()
            && self.keys.last().is_none_or(|last| *last < key)
        {
            // Sorted entries come one behind the other.
            if self.keys.len() == self.keys.capacity() {
                self.keys.reserve_exact(most);
                self.values.reserve_exact(most);
            }
            self.keys.push(key);
            self.values.push(value);
            return;
        }
        self.changed.insert(key, value);
        if self.changed.len() > most {
            self.merge();
        }
    }

    /// Moves the changes into the arrays, in their places: other arrays would take as much memory.
    fn merge(&mut self) {
        let mut changed = std::mem::take(&mut self.changed).into_iter().peekable();
        let mut new = Vec::new();
        self.retain_mut(|key, value| {
            while let Some((before, added)) = changed.next_if(|(before, _)| *before < key) {
                new.extend(added.map(|added| (before, added)));
            }
            match changed.next_if(|(same, _)| *same == key) {
                None => true,
                Some((_, None)) => false,
                Some((_, Some(other))) => {
                    *value = other;
                    true
                }
            }
        });
        new.extend(changed.filter_map(|(key, added)| Some((key, added?))));
        let mut old = self.keys.len();
        self.keys.reserve_exact(new.len());
        self.values.reserve_exact(new.len());
        self.keys.extend(new.iter().map(|(key, _)| *key));
        self.values.extend(new.iter().map(|(_, value)| *value));
        let mut end = self.keys.len();
        // From the largest key on, each entry moves to its last place.
        while let Some((key, value)) = new.pop() {
            while old > 0 && self.keys[old - 1] > key {
                (old, end) = (old - 1, end - 1);
                self.keys[end] = self.keys[old];
                self.values[end] = self.values[old];
            }
            end -= 1;
            self.keys[end] = key;
            self.values[end] = value;
        }
    }

    /// Keeps the entries in the arrays of which `keeps` is true.
    fn retain_mut(&mut self, mut keeps: impl FnMut(K, &mut V) -> bool) {
        let mut kept = 0;
        for at in 0..self.keys.len() {
            let (key, mut value) = (self.keys[at], self.values[at]);
            if keeps(key, &mut value) {
                self.keys[kept] = key;
                self.values[kept] = value;
                kept += 1;
            }
        }
        self.keys.truncate(kept);
        self.values.truncate(kept);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// A generator of numbers without a pattern.
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn it_is_the_map_that_it_stands_for() {
        for range in [50, 3_000, 1 << 31] {
            let (mut map, mut wanted, mut state) = (CompactMap::default(), BTreeMap::new(), range);
            for step in 0..20_000_u32 {
                let key = next(&mut state) % range;
                assert_eq!(map.get(key), wanted.get(&key).copied());
                match next(&mut state) % 3 {
                    0 => assert_eq!(map.remove(key), wanted.remove(&key)),
                    _ if step % 5_000 == 0 => {
                        map.retain(|key, _| key % 3 > 0);
                        wanted.retain(|key, _| key % 3 > 0);
                    }
                    _ => assert_eq!(map.insert(key, step), wanted.insert(key, step)),
                }
                let mut within: Vec<_> = map.within(key..=key + range / 50).collect();
                within.sort_unstable();
                let wanted_within = wanted.range(key..=key + range / 50).map(|(key, value)| (*key, *value));
                assert!(within.into_iter().eq(wanted_within));
                assert_eq!((map.len(), map.is_empty()), (wanted.len(), wanted.is_empty()));
            }
            assert!(map.sorted().eq(wanted.clone()));
            for (key, value) in &wanted {
                assert_eq!(map.get(*key), Some(*value));
            }
            assert_eq!(map.into_sorted(), wanted.into_iter().unzip());
        }
    }

    #[test]
    fn few_entries_are_outside_the_array() {
        let mut map = CompactMap::default();
        for key in 0..100_000_u64 {
            map.insert(key.reverse_bits(), key);
            assert!(map.changed.len() <= CHANGED_MIN.max(map.keys.len() / CHANGED_PART));
        }
        assert!(map.keys.capacity() <= map.len() && map.values.capacity() <= map.len());
        let sorted: CompactMap<_, _> = (0..100_000_u64).map(|key| (key, key)).collect();
        assert!(sorted.changed.is_empty() && sorted.keys.capacity() <= sorted.len() + sorted.len() / CHANGED_PART);
    }
}
