//! Limits of the resources that clients take from the daemon: for one user, and for all together.
//!
//! A resource counts for the user that opened the handle of the request. The lock here is a leaf.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::errno::{Error, Result};

use crate::sync::Lock;

/// A limit for one kind of resource, and the amounts in use.
pub struct Quota {
    of_user: usize,
    in_all: usize,
    /// The errno of a request for more.
    errno: i32,
    taken: Lock<Taken>,
}

#[derive(Default)]
struct Taken {
    in_all: usize,
    /// By user. A user without a share has no entry.
    of_users: BTreeMap<u32, usize>,
}

/// A share of a quota. Its drop returns it.
pub struct Share {
    quota: Arc<Quota>,
    user: u32,
    count: usize,
}

impl Quota {
    /// Makes a quota of `of_user` for the clients of one user, and of `in_all` for all together.
    pub fn new(of_user: usize, in_all: usize, errno: i32) -> Arc<Self> {
        Arc::new(Self { of_user, in_all, errno, taken: Lock::default() })
    }

    /// Takes a share of `count` for `user`.
    ///
    /// # Errors
    ///
    /// - The errno of the quota: the limit is reached.
    pub fn take(self: &Arc<Self>, user: u32, count: usize) -> Result<Share> {
        let mut share = self.share(user);
        share.set(count).map(|()| share)
    }

    /// Makes an empty share for `user`.
    pub fn share(self: &Arc<Self>, user: u32) -> Share {
        Share { quota: Arc::clone(self), user, count: 0 }
    }
}

impl Share {
    /// Sets the share to `count`. A smaller share never fails.
    ///
    /// # Errors
    ///
    /// - The errno of the quota: the limit is reached. The share stays as it was.
    pub fn set(&mut self, count: usize) -> Result<()> {
        let Quota { of_user, in_all, errno, taken } = &*self.quota;
        let mut taken = taken.lock();
        let others = taken.in_all - self.count;
        let own = taken.of_users.get(&self.user).copied().unwrap_or_default() - self.count;
        let fits = |others: usize, limit: usize| others.checked_add(count).is_some_and(|sum| sum <= limit);
        if count > self.count && !(fits(own, *of_user) && fits(others, *in_all)) {
            return Err(Error::new(*errno));
        }
        taken.in_all = others + count;
        match own + count {
            0 => taken.of_users.remove(&self.user),
            sum => taken.of_users.insert(self.user, sum),
        };
        self.count = count;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // A smaller share never fails.
        let _ = self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::errno::ENOMEM;

    #[test]
    fn a_user_and_all_have_limits() {
        let quota = Quota::new(10, 15, ENOMEM);
        let too_much = Err(Error::new(ENOMEM));
        let [mut anns, mut more, mut bobs, mut eves] = [1, 1, 2, 3].map(|user| quota.share(user));
        assert_eq!(anns.set(6), Ok(()));
        assert_eq!(more.set(5), too_much);
        assert_eq!(more.set(4), Ok(()));
        assert_eq!(anns.set(7), too_much);
        assert_eq!(bobs.set(5), Ok(()));
        assert_eq!(eves.set(1), too_much, "all together have 15");
        assert_eq!(anns.set(5), Ok(()));
        assert_eq!(eves.set(1), Ok(()));
        assert_eq!(eves.set(usize::MAX), too_much);
        drop((anns, more, bobs));
        assert_eq!(eves.set(10), Ok(()));
        drop(eves);
        let taken = quota.taken.lock();
        assert!(taken.of_users.is_empty() && taken.in_all == 0);
    }
}
