//! The options of `overlayfs-fuse` as people read them; see [`overlayfs::usage`].

use overlayfs::usage::{Explained, Group, Program, option};

use crate::run;

/// `overlayfs-fuse`.
pub const PROGRAM: Program = Program {
    name: "overlayfs-fuse",
    about: "read-only directories under one writable directory, as one merged tree",
    forms: &[
        "[-f] [-v] [-d] [-s] -o lowerdir=DIR[:DIR ...][,upperdir=DIR][,workdir=DIR][,OPTION ...] [NAME] MOUNTPOINT",
        "-o remount[,OPTION ...] MOUNTPOINT",
        "ls [--json]",
        "status [--json|--metrics] [--watch] MOUNTPOINT",
        "sync | restart MOUNTPOINT",
        "snapshot [--name NAME] MOUNTPOINT",
        "rollback | snapshots MOUNTPOINT",
        "run [OPTION ...] [--] PROGRAM [ARGUMENT ...]",
    ],
    before: "Mounts the merged tree at MOUNTPOINT. umount, fusermount3 -u, SIGINT, SIGTERM and SIGHUP unmount it. \
             NAME is the source in /proc/mounts. mount(8) and fstab(5) know the program as the type \
             fuse.overlayfs-fuse. The manual page overlayfs-fuse(1) has the details.",
    commands: &[
        ("ls", "List all overlays of the system that the user may see."),
        ("status", "Tell what the program that serves a mount does."),
        ("sync", "Complete partial copies of a mount, and sync all of its changes to the disk."),
        ("restart", "Let the installed version of the program go on with a mount, while programs use it."),
        ("snapshot", "Freeze the upper directory of a mount, and go on in a new one."),
        ("rollback", "Leave the changes since the last snapshot aside, and show the snapshot again."),
        ("snapshots", "List the snapshots of a mount: number, time and name."),
        ("run", "Run a program in an overlay of the system, without root."),
    ],
    groups: &[
        Group { title: "Options", options: &WORDS },
        Group { title: "Layers", options: &LAYERS },
        Group { title: "Owners and access", options: &ACCESS },
        Group { title: "How it works", options: &WORK },
        Group { title: "Options of mount(8)", options: &MOUNT },
        Group { title: "Options without effect", options: &WITHOUT_EFFECT },
        run::usage::OPTIONS,
        Group { title: "Options of ls", options: &LS },
        Group { title: "Options of status", options: &STATUS },
        Group { title: "Options of snapshot", options: &SNAPSHOT },
    ],
    after: "",
};

const WORDS: [Explained; 8] = [
    Explained {
        form: "-o LIST",
        brief: "Mount options, separated by commas. The option may come more than once. A comma, colon or backslash \
                in a value needs a backslash before it.",
        more: "In double quotes a value may have plain commas. If an option comes twice, the last one counts, except \
               for the layers. An unknown option is an error, which names the nearest one.",
    },
    option("-f", "Stay in the foreground."),
    Explained {
        form: "-v, --verbose",
        brief: "Log important events: to standard error, or in the background to syslog.",
        more: "Important events are the mount with its layers, the copy-up of a large file, and the unmount. Warnings \
               are always logged. Without `/dev/log`, as in most containers, messages in the background are lost. \
               `log` names another target.",
    },
    option("-d, --debug", "Log every request too, and stay in the foreground."),
    option("--on-exit ENDING", "The same as the mount option `on_exit`."),
    option("-s", "Serve as few requests at once as possible, as `max_threads=1` does."),
    option("-h, --help", "Print a summary of the options."),
    option("-V, --version", "Print the version."),
];

const LAYERS: [Explained; 14] = [
    Explained {
        form: "lowerdir=DIR[:DIR ...]",
        brief: "The directories that are only read. The first one is the topmost: its entries hide entries of the \
                same name in later ones. Directories of the same path are merged.",
        more: "An overlay has at least one lower directory.",
    },
    option("lowerdir+=DIR", "One more lower directory, below the earlier ones. A colon is part of the path."),
    option("upperdir=DIR", "The directory that takes every change. Without it every change fails with `EROFS`."),
    Explained {
        form: "workdir=DIR",
        brief: "A directory for the overlay alone, outside the upper directory and on its filesystem. The overlay \
                prepares changes there. Without this option it uses a reserved name inside the upper directory.",
        more: "Name the same directory at every mount: it stores hard links and inode numbers. The reserved name is \
               `.wh..wh.work`.",
    },
    Explained {
        form: "snapshots=DIR",
        brief: "A directory on the filesystem of the upper directory, for snapshots. After a snapshot the changes go \
                to a new upper directory in it. Name the same upper directory and the same `DIR` at every mount.",
        more: "See the commands `snapshot` and `rollback`. `DIR` must be outside all layers but lower ones.",
    },
    Explained {
        form: "format=oci|kernel",
        brief: "The format of a new upper directory: an OCI image layer, which is the default, or that of the \
                kernel's overlayfs. `kernel` needs a `workdir`.",
        more: "`mount -t overlay` can use an upper directory in the kernel's format too. An upper directory that \
               already has a format keeps it without this option. It is refused with the other format.",
    },
    option(
        "ro, rw",
        "With `ro` every change fails with `EROFS`, and the upper directory is read like a lower one. `rw` is the \
         default.",
    ),
    Explained {
        form: "volatile",
        brief: "The overlay syncs nothing to the disk before the unmount, even if a program asks for it. A mark stays \
                in the work directory until then. After a crash the upper directory is refused because of it.",
        more: "This is faster, and right for data that can be made again. The mark is the directory \
               `work/incompat/volatile` in the work directory, as for the kernel's overlayfs. If the program or the \
               system ends without an unmount, the upper directory may be damaged. After ten seconds without a change \
               the tree is synced too, and has no mark until its next change.",
    },
    option("fsync=0|1", "`0` is another name for `volatile`. `1` is the default."),
    Explained {
        form: "reuse_volatile",
        brief: "Use the upper directory even if it has the mark of a crash, and remove the mark.",
        more: "Removing the mark by hand has the same effect.",
    },
    Explained {
        form: "whole_copies",
        brief: "Copy a lower file whole before its first change. Without this option a large copy may lack unchanged \
                data. It becomes complete when it is synced, linked or renamed, or at the unmount.",
        more: "A file of 1 MiB or more counts as large. An incomplete copy has a reserved name in the upper \
               directory. Use this option if other programs read the upper directory during the mount.",
    },
    Explained {
        form: "userxattr",
        brief: "Trust redirects and marks of metadata in the layers, whatever their owner. Without this option a mark \
                that a user could have made leads only to objects that this user may read.",
        more: "A user could have made a mark if its file belongs to neither root nor the mounting user, or if others \
               may write the file. Attributes in the namespace `trusted.` are root's and always count.",
    },
    Explained {
        form: "on_exit=preserve|discard|commit|commit-atomic",
        brief: "What happens to the changes at a clean unmount. `preserve` is the default: they stay. `discard` throws \
                them away. `commit` merges them into the topmost lower directory, `commit-atomic` in one step.",
        more: "umount returns when it is done. After a crash of the mount, or if not everything could be synced, the \
               changes stay. A failure is logged, and `overlayfs-layer` goes on. Without an upper directory, and with \
               `ro`, the option is refused.",
    },
    Explained {
        form: "redirect_dir=on|off|follow",
        brief: "With `off` a rename of a lower directory fails with `EXDEV`. mv then copies it. `follow` is the same \
                as `off`; `on` is the default.",
        more: "Use `off` if other programs read the upper directory, such as fuse-overlayfs or tools for images. They \
               do not know the lower path of a renamed directory. The mount follows renames of earlier mounts.",
    },
];

const ACCESS: [Explained; 7] = [
    Explained {
        form: "allow_other",
        brief: "Other users may use the mount. A mount of root always allows it.",
        more: "A user other than root needs the line `user_allow_other` in `/etc/fuse.conf`.",
    },
    option("default_permissions", "The kernel checks access by owner and mode. It always does."),
    Explained {
        form: "uidmapping=A:B:N[:A:B:N ...], gidmapping=A:B:N[:A:B:N ...]",
        brief: "N user (group) ids of the layers from A on show as the ids from B on. All others show as 65534.",
        more: "A new or changed object gets the layer's id of the id that it shows. An object whose id shows as 65534 \
               belongs to no user, as on a mount with mapped ids. Even root can only give it another owner. \
               Set-user-id and set-group-id bits show and work. They are written to a layer only for an id that shows \
               as itself. A user whose id does not show cannot create an object (`EOVERFLOW`), and cannot become the \
               owner of one (`EINVAL`). With the mapping of a user namespace, as in `/proc/self/uid_map`, files show \
               inside that namespace the owners that they have in the layers.",
    },
    Explained {
        form: "squash_to_root",
        brief: "Every object shows as that of user 0 and group 0.",
        more: "In the layer a new object still belongs to its creator.",
    },
    Explained {
        form: "squash_to_uid=ID, squash_to_gid=ID",
        brief: "Every object shows as that of this user, or of this group.",
        more: "They come before `squash_to_root`. The user that shows as the owner may change everything. Set-user-id \
               and set-group-id bits show, and are written, only where the owner or the group is the same in the \
               layer. So a user can edit a tree of other users, as far as the mounting user may read it. If the mount \
               cannot set an owner in the upper directory, it records it in the attribute \
               `user.containers.override_stat`. Later mounts show the owner from there; podman and \
               `fuse-overlayfs(1)` read it too. The owner of a symlink, socket or FIFO is lost.",
    },
    option("static_nlink", "Directories show one link."),
    option("noacl", "There are no POSIX ACLs."),
];

const WORK: [Explained; 10] = [
    Explained {
        form: "timeout=SECONDS",
        brief: "How long the kernel caches names and attributes. Without this option there is no limit.",
        more: "The number may be a fraction. The default is right because only the mount changes its layers.",
    },
    Explained {
        form: "max_threads=N",
        brief: "How many requests the mount serves at once, at least two. Without this option there are two for each \
                processor, from 4 to 16.",
        more: "Two are needed since one request may wait for the answer to another.",
    },
    option("threaded=0|1", "`0` is `max_threads=1`; `1` is the default."),
    Explained {
        form: "io_uring=auto|on|off",
        brief: "Whether requests come over io_uring, which makes each of them cheaper. `auto` is the default: they do \
                where the kernel offers it.",
        more: "Linux 6.14 and later offer it to each mount that begins after `echo 1 > \
               /sys/module/fuse/parameters/enable_uring`. Such a mount has three threads for each processor that the \
               machine may have. If `max_threads` allows fewer, or the system refuses a ring, `auto` uses the device \
               /dev/fuse, and `on` is an error.",
    },
    Explained {
        form: "comeback",
        brief: "The mount goes on if its process is killed: another one takes its place, and programs see a pause.",
        more: "It needs Linux 6.9, and /dev/fuse in place of io_uring. After the tenth time within ten seconds, the \
               mount ends.",
    },
    Explained {
        form: "writeback=0|1",
        brief: "With `1` the kernel holds back data that is written to files, and writes it in larger pieces. `1` is \
                the default.",
        more: "A write that cannot succeed, for example for lack of space, still fails at once. Near the end of the \
               space the kernel asks before each write.",
    },
    Explained {
        form: "passthrough",
        brief: "The kernel reads large files of a read-only mount from their layers itself. All mounts of a layer \
                share the memory of these files then.",
        more: "Files from 64 KiB on are large. Each open(2) and each close(2) of any file costs a request then. It \
               needs root and Linux 6.9. Without them the option has no effect.",
    },
    Explained {
        form: "log=FILE|syslog|journal|stderr",
        brief: "Send messages to the end of a file, to syslog, to the journal, or to standard error. In the background \
                they go only there.",
        more: "In a file each message begins with the seconds since 1970. The journal gets the field `MOUNTPOINT` with \
               the mount point. `stderr` keeps the standard error of the start open in the background. \
               A file with the name of another target needs a slash: `./journal`.",
    },
    option("debug", "As `--debug`."),
    Explained {
        form: "fsname=NAME",
        brief: "The source in /proc/mounts, like NAME on the command line.",
        more: "This option has priority over the name on the command line. Without a name the source is the list of the \
               layers, shortened to 512 bytes.",
    },
];

const MOUNT: [Explained; 2] = [
    Explained {
        form: "remount",
        brief: "Change `ro`, `rw` and the flags below of the mount at MOUNTPOINT. All else stays as it is.",
        more: "A mount that began with `ro`, or without an upper directory, takes no changes after `rw` either \
               (`EROFS`).",
    },
    Explained {
        form: "nosuid, suid, nodev, dev, noexec, exec, noatime, atime, nodiratime, diratime, relatime, norelatime, \
               strictatime, nostrictatime, lazytime, nolazytime, nosymfollow, symfollow, sync, async, dirsync",
        brief: "",
        more: "Flags of the mount, as `mount(8)` explains them. Those about access times have no effect, since \
               reading changes no access times. A mount through `fusermount3(1)` always has `nosuid` and `nodev`. Of \
               the others it takes only `noexec` and `noatime`. The flags are:",
    },
];

const WITHOUT_EFFECT: [Explained; 11] = [
    Explained {
        form: "auto, noauto, user, nouser, users, owner, group, nofail, defaults, comment, _netdev, helper, uhelper, \
               private, x-..., X-...",
        brief: "",
        more: "Accepted for programs that read `fstab(5)`, with any value:",
    },
    Explained {
        form: "user_id, group_id, silent, loud, nomand, iversion, noiversion, context, fscontext, defcontext, \
               rootcontext",
        brief: "",
        more: "Accepted for the kernel, which does not need them here. Files have the security labels of the layers, \
               or that of the filesystem type. The mount does not pass on the labels of the last four options. The \
               options are:",
    },
    Explained {
        form: "clone_fd, max_idle_threads, kernel_cache, big_writes, nonempty, splice_read, splice_write, \
               splice_move, max_write, fast_ino, fast_ino_check",
        brief: "",
        more: "Accepted for users of fuse-overlayfs and other FUSE filesystems, with any value:",
    },
    option("door=engine", "Requests call the overlay's engine directly. Other values are refused."),
    option("xino=off|auto|on", "Inode numbers are unique and stay the same, as with `on`."),
    option("index=off", "Hard links stay without it. Other values are refused."),
    option("nfs_export=off|on", "NFS can export the tree: file handles stay valid over mounts, as with `on`."),
    option("uuid=auto|null|off", "The values of the kernel's overlayfs. None has an effect."),
    Explained {
        form: "metacopy=on|off",
        brief: "After the unmount no copy has only metadata.",
        more: "The mount reads such files of the kernel's overlayfs.",
    },
    option("noxattrs=0", "There are extended attributes. `1` is refused."),
    option("xattr_permissions=2", "The mount records owners that it cannot set, and only these."),
];

const LS: [Explained; 1] = [option("--json", "Print each overlay as a JSON object on a line.")];

const SNAPSHOT: [Explained; 1] = [option("--name NAME", "Name the snapshot. Its number is its name otherwise.")];

const STATUS: [Explained; 3] = [
    option("--json", "Print a JSON object on a line."),
    option("--metrics", "Print the numbers in the text format of Prometheus."),
    option("--watch", "Print again every second, until the mount ends."),
];
