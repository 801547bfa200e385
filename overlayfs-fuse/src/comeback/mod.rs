//! The comeback: a mount goes on after its daemon was killed.
//!
//! A second process, the *keeper*, is a copy of the daemon from before it entered its sandbox. The
//! two share one table of descriptors. So the device of the mount, the locks of the layers and
//! files without a name stay open when the daemon dies, at no cost.
//!
//! The daemon writes down what it would hand over: which objects the kernel knows, and where each
//! is. This *ledger* is in memory that outlives it. The keeper makes the same legacy of it that a
//! daemon at work gives (`succession`), and the next daemon takes the mount over in the same way.
//!
//! The kernel then sends all requests again that were taken and not answered
//! (`FUSE_NOTIFY_RESEND`). One of them may have been performed. So before a request changes names,
//! the daemon writes down what it is about to do, and the keeper looks whether that is done.
//!
//! | file | subject |
//! | --- | --- |
//! | `ledger` | what the daemon writes down, and how it is read |
//! | `look` | what unfinished requests have done |
//! | `keeper` | the process that waits for the death of the daemon |

mod keeper;
mod ledger;
mod look;

pub(crate) use keeper::{Kept, Mounted};
pub(crate) use ledger::{Begun, Hold, Ledger};
