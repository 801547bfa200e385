//! The command line of `overlayfs-fuse`: its own options, the layers, the options of mount(8) and
//! fstab, and those of fuse-overlayfs.
//!
//! Each mount option is in one of the tables below, or in [`overlayfs::options::KEYS`]. The table
//! says what it does, that it does nothing, or why it is refused. Any other option is an error that
//! names the nearest one.

use std::ffi::OsString;
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use overlayfs::format::Wanted;
use overlayfs::options::{Ending, Error, KEYS, ListItem, Options, split_list, unknown};
use overlayfs::usage::Explained;
use rustix::mount::MountFlags;

use crate::control::{COMMANDS, Request, about};
use crate::identity::{IdMap, Identity, Range};
use crate::logger::Target;
use crate::run;
use crate::run::options::{Asked, Run};
use crate::succession::{self, Identities};
use crate::usage::PROGRAM;

/// The command line of a mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The mount exists already, and only its flags change.
    pub remount: bool,
    /// The layers, and whether the overlay writes and syncs them.
    pub layers: Options,
    /// As given: it may be relative, and need not exist.
    pub mount_point: PathBuf,
    /// The source in `/proc/mounts`. None: none is given.
    pub source: Option<OsString>,
    /// The program stays in the foreground.
    pub foreground: bool,
    /// Which messages are logged.
    pub verbosity: Verbosity,
    /// Where messages go. None: to standard error, in the background to syslog.
    pub log: Option<Target>,
    /// The flags that mount(2) takes for any filesystem. [`MountFlags::RDONLY`] is not among them:
    /// it follows from the layers.
    pub flags: MountFlags,
    /// Other users than the one of the mount may use it.
    pub allow_other: bool,
    /// The owners that the mount shows.
    pub identity: Identity,
    /// Directories show one link.
    pub static_nlink: bool,
    /// There are POSIX ACLs.
    pub acl: bool,
    /// The kernel holds written data back.
    pub writeback: bool,
    /// The kernel reads large files from their layers itself.
    pub passthrough: bool,
    /// How long the kernel may keep an answer. None: without end.
    pub timeout: Option<Duration>,
    /// How many requests run at once. None: the default of the program.
    pub max_threads: Option<NonZeroUsize>,
    /// Whether requests come over io_uring.
    pub io_uring: IoUring,
    /// The mount goes on after its process was killed.
    pub comeback: bool,
    /// The mount options as they were given, without those that name layers.
    pub given: Vec<OsString>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            remount: false,
            layers: Options::default(),
            mount_point: PathBuf::new(),
            source: None,
            foreground: false,
            verbosity: Verbosity::default(),
            log: None,
            flags: MountFlags::empty(),
            allow_other: false,
            identity: Identity::default(),
            static_nlink: false,
            acl: true,
            writeback: true,
            passthrough: false,
            timeout: None,
            max_threads: None,
            io_uring: IoUring::default(),
            comeback: false,
            given: Vec::new(),
        }
    }
}

/// Whether requests come over io_uring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoUring {
    /// Where the kernel offers it.
    #[default]
    Auto,
    /// Without it there is no mount.
    On,
    /// They never do.
    Off,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors and warnings.
    #[default]
    Quiet,
    /// Also mounts, large copies and unmounts.
    Verbose,
    /// Also every request.
    Debug,
}

/// A command line.
#[derive(Clone, Debug)]
pub enum Command {
    /// Prints `--help`.
    Help,
    /// Prints the version.
    Version,
    /// Mounts an overlay.
    Mount(Box<MountOptions>),
    /// Changes the flags of an existing mount: [`MountOptions::flags`], and whether it is
    /// read-only.
    Remount(Box<MountOptions>),
    /// Goes on with a mount that another process serves.
    TakeOver(Box<MountOptions>, Identities),
    /// A command for a mount at work.
    Control(Request),
    /// Runs a command in an overlay of the system.
    Run(Box<Run>),
}

/// Applies an option with its value.
type Apply = fn(&mut MountOptions, &ListItem) -> Result<(), Error>;

/// The options with a value that is checked.
const CHECKED: [(&str, Apply); 30] = [
    ("remount", |options, item| item.switch(&mut options.remount, true)),
    ("allow_other", |options, item| item.switch(&mut options.allow_other, true)),
    ("uidmapping", |options, item| set(&mut options.identity.users, id_map(item))),
    ("gidmapping", |options, item| set(&mut options.identity.groups, id_map(item))),
    ("squash_to_root", |options, item| {
        options.identity.squash_user.get_or_insert(0);
        options.identity.squash_group.get_or_insert(0);
        item.check_no_value()
    }),
    ("squash_to_uid", |options, item| set(&mut options.identity.squash_user, id(item).map(Some))),
    ("squash_to_gid", |options, item| set(&mut options.identity.squash_group, id(item).map(Some))),
    ("static_nlink", |options, item| item.switch(&mut options.static_nlink, true)),
    ("noacl", |options, item| item.switch(&mut options.acl, false)),
    ("timeout", |options, item| set(&mut options.timeout, seconds(item).map(Some))),
    ("max_threads", |options, item| set(&mut options.max_threads, number(item, "a number above 0").map(Some))),
    ("threaded", |options, item| {
        let one = [("0", Some(NonZeroUsize::MIN)), ("1", None)];
        set(&mut options.max_threads, item.choice(&one))
    }),
    ("io_uring", |options, item| {
        let modes = [("auto", IoUring::Auto), ("on", IoUring::On), ("off", IoUring::Off)];
        set(&mut options.io_uring, item.choice(&modes))
    }),
    ("comeback", |options, item| item.switch(&mut options.comeback, true)),
    ("writeback", |options, item| set(&mut options.writeback, item.choice(&[("0", false), ("1", true)]))),
    ("passthrough", |options, item| item.switch(&mut options.passthrough, true)),
    ("fsync", |options, item| set(&mut options.layers.volatile, item.choice(&[("0", true), ("1", false)]))),
    ("snapshots", |options, item| set(&mut options.layers.snapshots, item.value("DIR").map(|dir| Some(dir.into())))),
    ("format", |options, item| {
        let formats = [("oci", Wanted::Oci), ("kernel", Wanted::Kernel)];
        set(&mut options.layers.format, item.choice(&formats).map(Some))
    }),
    ("log", |options, item| set(&mut options.log, item.value("TARGET").map(|target| Some(Target::of(target.into()))))),
    ("fsname", |options, item| set(&mut options.source, item.value("NAME").map(Some))),
    ("debug", |options, item| {
        options.verbosity = Verbosity::Debug;
        item.switch(&mut options.foreground, true)
    }),
    // Only a program for tests sends requests through the scheme.
    ("door", |_, item| only(item, "engine", "requests are calls of the overlay's engine")),
    // Inode numbers are always those of `on`.
    ("xino", |_, item| item.choice(&[("off", ()), ("auto", ()), ("on", ())])),
    ("index", |_, item| only(item, "off", "hard links are kept without it")),
    // File handles are always those of `on`.
    ("nfs_export", |_, item| item.choice(&[("off", ()), ("on", ())])),
    ("uuid", |_, item| item.choice(&[("auto", ()), ("null", ()), ("off", ())])),
    // The unmount completes every copy, and the overlay reads those of the kernel's overlayfs.
    ("metacopy", |_, item| item.choice(&[("off", ()), ("on", ())])),
    ("xattr_permissions", |_, item| only(item, "2", "the mount records owners that it cannot set, and only these")),
    ("noxattrs", |_, item| only(item, "0", "there are always extended attributes where the layers have them")),
];

/// The options of any filesystem: the flag, and whether the option sets or clears it.
const FLAGS: [(&str, MountFlags, bool); 21] = [
    ("nosuid", MountFlags::NOSUID, true),
    ("suid", MountFlags::NOSUID, false),
    ("nodev", MountFlags::NODEV, true),
    ("dev", MountFlags::NODEV, false),
    ("noexec", MountFlags::NOEXEC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("atime", MountFlags::NOATIME, false),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("diratime", MountFlags::NODIRATIME, false),
    ("relatime", MountFlags::RELATIME, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("lazytime", MountFlags::LAZYTIME, true),
    ("nolazytime", MountFlags::LAZYTIME, false),
    ("nosymfollow", MountFlags::NOSYMFOLLOW, true),
    ("symfollow", MountFlags::NOSYMFOLLOW, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
    ("async", MountFlags::SYNCHRONOUS, false),
    ("dirsync", MountFlags::DIRSYNC, true),
];

/// The options without effect. They ask for the usual behaviour, are advice that is not needed, or
/// are for other readers of fstab. Their values do not matter.
const WITHOUT_EFFECT: [&str; 37] = [
    "user_id",
    "group_id",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "defaults",
    "comment",
    "_netdev",
    "helper",
    "uhelper",
    "silent",
    "loud",
    "nomand",
    "iversion",
    "noiversion",
    "default_permissions",
    "clone_fd",
    "max_idle_threads",
    "kernel_cache",
    "big_writes",
    "nonempty",
    "splice_read",
    "splice_write",
    "splice_move",
    "max_write",
    "fast_ino",
    "fast_ino_check",
    "context",
    "fscontext",
    "defcontext",
    "rootcontext",
    "private",
];

/// The refused options of fuse-overlayfs, of libfuse and of the kernel's overlayfs, with the
/// reason.
pub const REFUSED: [(&str, &str); 12] = [
    ("allow_root", "the kernel has only allow_other, for all users"),
    ("auto_unmount", "a mount whose program was killed stays until it is unmounted"),
    ("subtype", "the type is always fuse.overlayfs-fuse"),
    ("plugins", "there are no plug-ins for lower layers"),
    ("ino32_t", "inode numbers have 64 bits"),
    ("uid", "owners are shown by uidmapping and squash_to_uid"),
    ("gid", "groups are shown by gidmapping and squash_to_gid"),
    ("umask", "modes are those of the layers"),
    ("entry_timeout", "there is one timeout for all"),
    ("attr_timeout", "there is one timeout for all"),
    ("negative_timeout", "there is one timeout for all"),
    ("mand", "Linux has no mandatory locks any more"),
];

impl Command {
    /// Parses a command line without its first word, the program.
    ///
    /// # Errors
    ///
    /// - A sentence names the word that does not fit.
    pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let words: Vec<_> = words.into_iter().collect();
        if let Some(request) = Request::parse(&words, &COMMANDS, "mount point") {
            return request.map(Self::Control);
        }
        if words.first().is_some_and(|word| word == succession::WORD) {
            let layers = words.get(1).and_then(|word| Identities::parse(word));
            return match (Self::parse_mount(words.into_iter().skip(2))?, layers) {
                (Self::Mount(options), Some(layers)) => Ok(Self::TakeOver(options, layers)),
                _ => Err(Error::new("The command line is not that of a mount.")),
            };
        }
        if words.first().is_some_and(|word| word == "run") {
            return Ok(match run::options::parse(words.into_iter().skip(1))? {
                Asked::Help => Self::Help,
                Asked::Run(run) => Self::Run(run),
            });
        }
        Self::parse_mount(words)
    }

    /// Parses the command line of a mount.
    fn parse_mount(words: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        use lexopt::Arg::{Long, Short, Value};

        let mut options = MountOptions::default();
        let mut places = Vec::new();
        let mut parser = lexopt::Parser::from_args(words);
        while let Some(word) = parser.next()? {
            match word {
                Short('h') | Long("help") => return Ok(Self::Help),
                Short('V') | Long("version") => return Ok(Self::Version),
                Short('f') => options.foreground = true,
                Long("on-exit") => options.layers.on_exit = Ending::parse(&parser.value()?)?,
                Short('s') => options.max_threads = Some(NonZeroUsize::MIN),
                Short('v') | Long("verbose") => options.verbosity = options.verbosity.max(Verbosity::Verbose),
                Short('d') | Long("debug") => (options.verbosity, options.foreground) = (Verbosity::Debug, true),
                Short('o') => {
                    for item in split_list(&parser.value()?)? {
                        options.add(&item)?;
                    }
                }
                Value(word) => places.push(word),
                Short(other) => return Err(Error::new(format!("There is no option -{other}."))),
                Long(other) => return Err(unknown("option", &format!("--{other}"), &words_of_a_mount())),
            }
        }
        let mut places = places.into_iter();
        match (places.next(), places.next(), places.next()) {
            (Some(point), None, _) => options.mount_point = point.into(),
            (Some(source), Some(point), None) => {
                options.mount_point = point.into();
                options.source.get_or_insert(source);
            }
            (_, _, Some(more)) => {
                let more = more.display();
                return Err(Error::new(format!(
                    "The command line has a word too many, {more}: it takes [NAME] MOUNTPOINT."
                )));
            }
            (None, ..) => return Err(Error::new("The mount point is missing.")),
        }
        if options.mount_point.as_os_str().is_empty() {
            return Err(Error::new("The path of the mount point is empty."));
        }
        if options.remount {
            return Ok(Self::Remount(Box::new(options)));
        }
        options.layers.check()?;
        options.check_passthrough()?;
        Ok(Self::Mount(Box::new(options)))
    }
}

impl MountOptions {
    /// Checks that a mount whose large files the kernel reads itself is read-only.
    ///
    /// # Errors
    ///
    /// - A sentence says how to make it so.
    fn check_passthrough(&self) -> Result<(), Error> {
        if !self.passthrough || self.layers.read_only || self.layers.upper.is_none() {
            return Ok(());
        }
        Err(Error::new("The mount option passthrough needs a read-only mount: add ro, or leave upperdir out."))
    }

    /// Applies one item of an `-o` list.
    pub(crate) fn add(&mut self, item: &ListItem) -> Result<(), Error> {
        let key = item.key.as_str();
        if !about::names_layers(key) {
            self.given.push(about::written(key, item.raw_value()));
        }
        if KEYS.contains(&key) {
            self.layers.add(item)
        } else if let Some((_, apply)) = CHECKED.iter().find(|(known, _)| *known == key) {
            apply(self, item)
        } else if let Some((_, flag, on)) = FLAGS.iter().find(|(known, ..)| *known == key) {
            item.check_no_value()?;
            self.flags.set(*flag, *on);
            Ok(())
        } else if WITHOUT_EFFECT.contains(&key) || key.starts_with("x-") || key.starts_with("X-") {
            Ok(())
        } else if let Some((_, reason)) = REFUSED.iter().find(|(known, _)| *known == key) {
            Err(Error::new(format!("The mount option {key} cannot be used: {reason}.")))
        } else {
            Err(unknown("mount option", key, &accepted().collect::<Vec<_>>()))
        }
    }
}

/// Returns the words for a mount that begin with two dashes.
fn words_of_a_mount() -> Vec<&'static str> {
    explained().filter(|name| name.starts_with("--")).collect()
}

/// Returns the names of all mount options that are not refused.
fn accepted() -> impl Iterator<Item = &'static str> {
    let checked = CHECKED.iter().map(|(key, _)| *key);
    let flags = FLAGS.iter().map(|(key, ..)| *key);
    KEYS.into_iter().chain(checked).chain(flags).chain(WITHOUT_EFFECT)
}

/// Returns the names of the options of a mount that `usage` explains.
fn explained() -> impl Iterator<Item = &'static str> {
    let of_command = |title| PROGRAM.commands.iter().any(|(name, _)| title == format!("Options of {name}"));
    let groups = PROGRAM.groups.iter().filter(move |group| !of_command(group.title));
    groups.flat_map(|group| group.options).flat_map(Explained::forms).map(|(name, _)| name)
}

fn set<T>(slot: &mut T, value: Result<T, Error>) -> Result<(), Error> {
    *slot = value?;
    Ok(())
}

/// Makes the error for a wrong value; `what` names the right one.
fn wrong(item: &ListItem, value: impl Display, what: &str) -> Error {
    let key = &item.key;
    Error::new(format!("The mount option {key} needs {what}, which {value} is not."))
}

/// Checks an option that has only one value, for a reason.
fn only(item: &ListItem, word: &str, reason: &str) -> Result<(), Error> {
    let value = item.value(word)?;
    if value == word {
        return Ok(());
    }
    Err(Error::new(format!("There is no {}={}: {reason}.", item.key, value.display())))
}

/// Parses a value that is a number. `what` names it in the error.
fn number<T: FromStr>(item: &ListItem, what: &str) -> Result<T, Error> {
    let value = item.value("NUMBER")?;
    value.to_str().and_then(|value| value.parse().ok()).ok_or_else(|| wrong(item, value.display(), what))
}

/// Parses the id of a user or a group. The last number stands for no id.
fn id(item: &ListItem) -> Result<u32, Error> {
    match number(item, "an id")? {
        u32::MAX => Err(wrong(item, u32::MAX, "an id")),
        id => Ok(id),
    }
}

fn seconds(item: &ListItem) -> Result<Duration, Error> {
    let seconds = number(item, "a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong(item, seconds, "a number of seconds"))
}

/// Parses `A:B:N`, once or more. A colon may come first, since containers/storage writes one.
fn id_map(item: &ListItem) -> Result<IdMap, Error> {
    let value = item.value("A:B:N")?;
    let malformed = || wrong(item, value.display(), "numbers in threes, A:B:N:A:B:N");
    let text = value.to_str().ok_or_else(malformed)?;
    let numbers = text.strip_prefix(':').unwrap_or(text).split(':').map(str::parse);
    let numbers = numbers.collect::<Result<Vec<u32>, _>>().map_err(|_| malformed())?;
    let (threes, []) = numbers.as_chunks() else {
        return Err(malformed());
    };
    let ranges = threes.iter().map(|&[layer, shown, length]| Range { layer, shown, length });
    IdMap::new(ranges.collect()).map_err(|what| Error::new(format!("The mount option {} {what}.", item.key)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use overlayfs::layer::Owner;

    use super::*;

    fn parse(words: &[&str]) -> Result<Command, Error> {
        Command::parse(words.iter().map(OsString::from))
    }

    fn mounted(words: &[&str]) -> MountOptions {
        match parse(words) {
            Ok(Command::Mount(options)) => *options,
            other => panic!("{words:?} gave {other:?}"),
        }
    }

    /// Returns the options for a list of mount options.
    fn list(list: &str) -> MountOptions {
        mounted(&["-o", &format!("lowerdir=/l,{list}"), "/m"])
    }

    fn refused(words: &[&str]) -> String {
        match parse(words) {
            Err(error) => error.to_string(),
            other => panic!("{words:?} gave {other:?}"),
        }
    }

    fn paths(paths: &[&str]) -> Vec<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn defaults() {
        let options = mounted(&["-o", "lowerdir=/l", "/m"]);
        assert_eq!(options.layers, Options { lowers: paths(&["/l"]), ..Options::default() });
        assert_eq!(options.mount_point, PathBuf::from("/m"));
        assert_eq!(options.source, None);
        assert!(!options.foreground && !options.allow_other && !options.static_nlink);
        assert!(options.acl && options.writeback && !options.passthrough);
        assert_eq!(options.verbosity, Verbosity::Quiet);
        assert_eq!((options.timeout, options.max_threads, options.io_uring), (None, None, IoUring::Auto));
        assert!(options.identity.is_plain() && options.flags.is_empty());
    }

    #[test]
    fn layers_in_several_lists_around_the_mount_point() {
        let options =
            mounted(&["-f", "-o", r"lowerdir=/a\:b:/c\,d", "/m", "-oupperdir=/u", "-o", "workdir=/w,volatile,ro"]);
        assert_eq!(options.layers.lowers, paths(&["/a:b", "/c,d"]));
        assert_eq!(options.layers.upper, Some(PathBuf::from("/u")));
        assert_eq!(options.layers.work, Some(PathBuf::from("/w")));
        assert!(options.layers.volatile && options.layers.read_only && options.foreground);
        assert_eq!(options.mount_point, PathBuf::from("/m"));
    }

    #[test]
    fn a_command_line_of_mount() {
        let words = ["src", "/m", "-o", "rw,noexec,nosuid,lowerdir=/l,user=me,x-gvfs-show,nofail,_netdev,dev,suid"];
        let options = mounted(&words);
        assert_eq!((options.source, options.mount_point), (Some("src".into()), PathBuf::from("/m")));
        assert_eq!(options.flags, MountFlags::NOEXEC, "the last of nosuid and suid counts");
        assert!(!options.foreground && !options.layers.read_only);
        let options = mounted(&["/m", "-o", "ro,nosymfollow,silent,iversion,noexec,nosuid,nodev,lowerdir=/l,helper=x"]);
        assert_eq!(options.source, None);
        assert!(options.layers.read_only);
        let flags = MountFlags::NOSYMFOLLOW | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
        assert_eq!(options.flags, flags);
    }

    #[test]
    fn a_remount_of_mount() {
        let merged = "rw,nosuid,relatime,user_id=0,group_id=0,default_permissions,allow_other,remount,ro";
        let Ok(Command::Remount(options)) = parse(&["src", "/m", "-o", merged]) else { panic!("{merged}") };
        assert_eq!(options.mount_point, PathBuf::from("/m"));
        assert_eq!(options.flags, MountFlags::NOSUID | MountFlags::RELATIME);
        assert!(options.layers.read_only);
        let options = list("lowerdir+=/a:b,lowerdir+=/c,index=off,nfs_export=on,uuid=null");
        assert_eq!(options.layers.lowers, paths(&["/l", "/a:b", "/c"]));
    }

    #[test]
    fn a_command_line_of_podman() {
        let words = [
            "-o",
            "lowerdir=l/A:l/B,upperdir=/s/diff,workdir=/s/work,nodev,volatile,context=\"system_u:object_r:c:s0:c1,c2\",\
             uidmapping=:0:1000:1:1:110000:65536,gidmapping=:0:1000:1:1:110000:65536",
            "/s/merged",
        ];
        let options = mounted(&words);
        assert_eq!(options.layers.lowers, paths(&["l/A", "l/B"]));
        assert!(options.layers.volatile);
        assert_eq!(options.flags, MountFlags::NODEV);
        let shown = options.identity.shown(Owner { uid: 0, gid: 33 });
        assert_eq!(shown, Owner { uid: 1000, gid: 110_032 });
        let options = mounted(&["-o", "lowerdir=/l,squash_to_uid=1000,squash_to_gid=100", "/m"]);
        assert_eq!(options.identity.shown(Owner { uid: 0, gid: 0 }), Owner { uid: 1000, gid: 100 });
    }

    #[test]
    fn words_before_the_list() {
        assert_eq!(mounted(&["-v", "-o", "lowerdir=/l", "/m"]).verbosity, Verbosity::Verbose);
        for words in [&["-d", "-v"][..], &["-v", "--debug"], &["-odebug"], &["-dv"]] {
            let options = mounted(&[words, &["-o", "lowerdir=/l", "/m"]].concat());
            assert_eq!((options.verbosity, options.foreground), (Verbosity::Debug, true), "{words:?}");
        }
        assert_eq!(mounted(&["-s", "-o", "lowerdir=/l", "/m"]).max_threads, Some(NonZeroUsize::MIN));
        assert!(matches!(parse(&["--help"]), Ok(Command::Help)));
        assert!(matches!(parse(&["-h", "--frobnicate"]), Ok(Command::Help)));
        assert!(matches!(parse(&["-V"]), Ok(Command::Version)));
    }

    #[test]
    fn options_with_values() {
        assert_eq!(list("timeout=1.5").timeout, Some(Duration::from_millis(1500)));
        assert_eq!(list("timeout=0").timeout, Some(Duration::ZERO));
        assert_eq!(list("timeout=1000000000.0").timeout, Some(Duration::from_secs(1_000_000_000)));
        assert_eq!(list("max_threads=12").max_threads, NonZeroUsize::new(12));
        assert_eq!(list("threaded=0").max_threads, NonZeroUsize::new(1));
        assert!(list("passthrough").passthrough && list("passthrough,upperdir=/u,ro").passthrough);
        assert_eq!(list("io_uring=on").io_uring, IoUring::On);
        assert_eq!(list("io_uring=on,io_uring=off").io_uring, IoUring::Off);
        assert!(list("fsync=0").layers.volatile);
        assert!(!list("fsync=1").layers.volatile);
        assert!(!list("writeback=0").writeback);
        assert!(!list("noacl").acl);
        assert!(list("static_nlink").static_nlink);
        assert!(list("allow_other,default_permissions").allow_other);
        assert_eq!(mounted(&["-o", r"lowerdir=/l,fsname=a\,b", "src", "/m"]).source, Some("a,b".into()));
        assert_eq!(
            list("xino=auto,redirect_dir=on,metacopy=off,noxattrs=0,xattr_permissions=2,max_idle_threads=3")
                .max_threads,
            None
        );
    }

    #[test]
    fn squashing_to_a_user_comes_before_squashing_to_root() {
        for order in ["squash_to_uid=7,squash_to_root", "squash_to_root,squash_to_uid=7"] {
            let identity = list(order).identity;
            assert_eq!((identity.squash_user, identity.squash_group), (Some(7), Some(0)), "{order}");
        }
    }

    #[test]
    fn flags_are_set_and_taken_away() {
        for pair in FLAGS.chunks(2).filter(|pair| pair.len() == 2) {
            let ((on, flag, true), (off, other, false)) = (pair[0], pair[1]) else { panic!("{pair:?}") };
            assert_eq!(flag, other);
            assert_eq!(list(on).flags, flag);
            assert_eq!(list(&format!("{on},{off}")).flags, MountFlags::empty());
        }
        assert_eq!(list("dirsync").flags, MountFlags::DIRSYNC);
    }

    #[test]
    fn refusals_are_sentences() {
        let cases: &[(&[&str], &str)] = &[
            (&["-o", "lowerdir=/l"], "The mount point is missing."),
            (&["-o", "lowerdir=/l", ""], "The path of the mount point is empty."),
            (
                &["-o", "lowerdir=/l", "a", "b", "c"],
                "The command line has a word too many, c: it takes [NAME] MOUNTPOINT.",
            ),
            (&["/m"], "No lower directory is given: an overlay needs at least one."),
            (&["-x"], "There is no option -x."),
            (&["--halp"], "There is no option --halp. Did you mean --help?"),
            (&["-o"], "The option -o needs a value."),
            (&["-o", "squash_root"], "There is no mount option squash_root. Did you mean squash_to_root?"),
            (&["-o", "noatim"], "There is no mount option noatim. Did you mean noatime?"),
            (&["-o", "uidmaping=0:0:1"], "There is no mount option uidmaping. Did you mean uidmapping?"),
            (&["-o", "loverdir=/l"], "There is no mount option loverdir. Did you mean lowerdir?"),
            (&["-o", "frobnicate"], "There is no mount option frobnicate."),
            (&["-o", "nodev=1"], "The mount option nodev takes no value, but 1 is given."),
            (&["-o", "squash_to_root=0"], "The mount option squash_to_root takes no value, but 0 is given."),
            (&["-o", "squash_to_uid=me"], "The mount option squash_to_uid needs an id, which me is not."),
            (
                &["-o", "squash_to_gid=4294967295"],
                "The mount option squash_to_gid needs an id, which 4294967295 is not.",
            ),
            (&["-o", "timeout"], "The mount option timeout needs a value: timeout=NUMBER."),
            (&["-o", "timeout=soon"], "The mount option timeout needs a number of seconds, which soon is not."),
            (&["-o", "timeout=-1"], "The mount option timeout needs a number of seconds, which -1 is not."),
            (&["-o", "timeout=NaN"], "The mount option timeout needs a number of seconds, which NaN is not."),
            (
                &["-o", "lowerdir=/l,upperdir=/u,passthrough", "/m"],
                "The mount option passthrough needs a read-only mount: add ro, or leave upperdir out.",
            ),
            (&["-o", "io_uring=1"], "There is no io_uring=1: use io_uring=auto or io_uring=on or io_uring=off."),
            (&["-o", "max_threads=0"], "The mount option max_threads needs a number above 0, which 0 is not."),
            (&["-o", "door"], "The mount option door needs a value: door=engine."),
            (&["-o", "index=on"], "There is no index=on: hard links are kept without it."),
            (&["-o", "nfs_export=1"], "There is no nfs_export=1: use nfs_export=off or nfs_export=on."),
            (&["-o", "format=tar"], "There is no format=tar: use format=oci or format=kernel."),
            (
                &["-o", "uidmapping=0:1000"],
                "The mount option uidmapping needs numbers in threes, A:B:N:A:B:N, which 0:1000 is not.",
            ),
            (
                &["-o", "gidmapping="],
                "The mount option gidmapping needs numbers in threes, A:B:N:A:B:N, which  is not.",
            ),
            (
                &["-o", "uidmapping=0:1000:10:5:2000:10"],
                "The mount option uidmapping has ranges that overlap, 0:1000:10 and 5:2000:10.",
            ),
            (
                &["-o", "auto_unmount"],
                "The mount option auto_unmount cannot be used: a mount whose program was killed stays until it is \
                 unmounted.",
            ),
        ];
        for (words, sentence) in cases {
            assert_eq!(&refused(words), sentence, "{words:?}");
        }
    }

    #[test]
    fn no_option_stands_in_two_tables() {
        let all: Vec<_> = accepted().chain(REFUSED.iter().map(|(key, _)| *key)).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }

    #[test]
    fn every_mount_option_is_explained() {
        // An option such as `x-...` stands for many.
        let is_item = |name: &&str| !name.starts_with('-') && !name.ends_with("...");
        let names: Vec<_> = explained().filter(is_item).collect();
        let mut accepted: Vec<_> = accepted().collect();
        accepted.retain(|name| !names.contains(name));
        assert!(accepted.is_empty(), "{accepted:?} are not explained");
        for name in names {
            let said = parse(&["-o", name]).unwrap_err().to_string();
            assert!(!said.starts_with("There is no") && !said.contains("cannot be used"), "{said}");
        }
    }

    #[test]
    fn every_command_is_explained_with_its_options() {
        let commands: Vec<_> = PROGRAM.commands.iter().map(|(name, _)| *name).filter(|name| *name != "run").collect();
        assert_eq!(commands, COMMANDS);
        for name in COMMANDS {
            let title = format!("Options of {name}");
            let group = PROGRAM.groups.iter().find(|group| group.title == title);
            let names: Vec<_> = group.iter().flat_map(|group| group.names()).collect();
            assert_eq!(names, Request::options(name), "{name}");
        }
    }

    #[test]
    fn every_word_that_is_explained_is_an_option() {
        for group in PROGRAM.groups {
            let of = |name: &&str| group.title == format!("Options of {name}");
            let command: Vec<_> = PROGRAM.commands.iter().map(|(name, _)| *name).filter(of).collect();
            for name in group.names().filter(|name| name.starts_with('-')) {
                let said = match parse(&[&command[..], &[name]].concat()) {
                    Err(error) => error.to_string(),
                    Ok(_) => continue,
                };
                assert!(!said.starts_with("There is no option"), "{said}");
            }
        }
    }
}
