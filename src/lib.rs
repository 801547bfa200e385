//! An overlay filesystem: read-only lower directories stacked under one writable upper directory,
//! seen as one merged tree.
//!
//! A request comes through a front end ([`scheme`] on Redox), which knows who asks and what he may;
//! the engine ([`overlay`]) finds and changes objects of the merged tree; a [`layer`] is one
//! directory tree below it; [`format`](mod@format) says how deletions and renames are written down
//! in the upper layer, and [`fsck`] whether they are written well. `docs/design.md` has the
//! picture.

#![warn(missing_docs, clippy::too_many_lines)]

#[cfg(feature = "scheme")]
pub mod daemon;
pub mod errno;
pub mod format;
pub mod fsck;
pub mod layer;
pub mod mount;
pub mod options;
pub mod overlay;
#[cfg(feature = "scheme")]
pub mod scheme;
mod sync;
#[cfg_attr(
    not(any(feature = "scheme", test)),
    expect(
        dead_code,
        reason = "the threads that serve the scheme alone have turns; others only pass on what they never have"
    )
)]
mod turn;
pub mod usage;
