//! The next daemon of a mount: another process, of the same program or a newer one, takes the place
//! of this one while programs use the mount.
//!
//! The daemon may start no process. So the process `unmounter` starts the next daemon, and gives
//! both ends of a line to them. On it they talk:
//!
//! 1. The next daemon says which version of a legacy it takes. The present one still serves.
//! 2. The present daemon stops between two requests, and sends its legacy: what it knows as bytes,
//!    what it has open as descriptors.
//! 3. The next daemon stacks the layers again, and does all that can fail. Then it says that it is
//!    ready, or why it cannot go on.
//! 4. The present daemon says that it has stopped for good. From now on the next one serves.
//!
//! If anything fails before the last step, the next daemon is killed and the present one goes on.
//!
//! An attacker may have taken the daemon over. So the next one asks the process `unmounter` which
//! directories the layers are, and refuses others: it uses them with the rights of the start.
//!
//! A path may lead into the mount, for which no process answers meanwhile. So the next daemon looks
//! no path of the mount or of a layer up.
//!
//! | file | subject |
//! | --- | --- |
//! | `starter` | the start of the next daemon, by the process `unmounter` |
//! | `estate` | what the present daemon keeps for the next one, and the talk from its side |
//! | `heir` | the talk from the side of the next daemon |
//! | `legacy` | the layout of a legacy |

mod estate;
mod heir;
mod legacy;
mod starter;

pub(crate) use estate::{Estate, Next, Terms};
pub(crate) use heir::{Heir, report_end};
pub(crate) use legacy::{Legacy, Passed, Received};
pub(crate) use starter::{Identities, Program, StartedDaemons, Starter};

/// The word of the command line that makes a process the next daemon. The line is its standard
/// input. The next word says which directories the layers are ([`Identities`]), and the others are
/// those of the mount.
pub const WORD: &str = "take-over";

/// The version of a legacy. It grows when any of these changes: the layout of a legacy, the meaning
/// of its parts, the features that the mount wants from the kernel, the talk with the process
/// `unmounter`.
const VERSION: u64 = 4;

/// The messages of the two daemons begin with one of these.
const HELLO: u8 = b'h';
const READY: u8 = b'r';
const GO: u8 = b'g';
const FAILED: u8 = b'f';
/// The mount has ended well.
const ENDED: u8 = b'e';
