//! The options of `overlayfs-fuse` as people read them; see [`overlayfs::usage`].

use overlayfs::usage::{Explained, Group, Program, option};

pub const PROGRAM: Program = Program {
    name: "overlayfs-fuse",
    about: "read-only directories under one writable directory, as one merged tree",
    forms: &[
        "[-f] [-v] [-d] [-s] -o lowerdir=DIR[:DIR ...][,upperdir=DIR][,workdir=DIR][,OPTION ...] [NAME] MOUNTPOINT",
        "-o remount[,OPTION ...] MOUNTPOINT",
    ],
    before: "Mounts the merged tree at MOUNTPOINT until it is unmounted (umount, fusermount3 -u) or SIGINT, SIGTERM or SIGHUP ends the \
             program. NAME is the source in /proc/mounts. mount(8) and fstab(5) know the program as the type fuse.overlayfs-fuse. The \
             manual, overlayfs-fuse(1), says more.",
    groups: &[
        Group { title: "Options", options: &WORDS },
        Group { title: "Layers", options: &LAYERS },
        Group { title: "Owners and access", options: &ACCESS },
        Group { title: "How it works", options: &WORK },
        Group { title: "Options of mount(8)", options: &MOUNT },
        Group { title: "Options without effect", options: &WITHOUT_EFFECT },
    ],
    after: "",
};

const WORDS: [Explained; 7] = [
    Explained {
        form: "-o LIST",
        brief: "Mount options, separated by commas. May be given more than once. A comma, colon or backslash in a value is written behind \
                a backslash.",
        more: "A value in double quotes may have commas without. Where an option is given twice, the last one counts, except for the \
               layers. An unknown option is an error, which names the nearest one.",
    },
    option("-f", "Stay in the foreground."),
    Explained {
        form: "-v, --verbose",
        brief: "Log what matters: to standard error, or in the background to syslog.",
        more: "What matters is: which layers are mounted where, the copy-up of a large file, and the unmount. Warnings are always logged. \
               Where there is no `/dev/log`, as in most containers, messages in the background are lost; `log` has them appended to a \
               file.",
    },
    option("-d, --debug", "Log every request too, and stay in the foreground."),
    option("-s", "Answer as few requests at once as possible: as `max_threads=1`."),
    option("-h, --help", "Print a summary of the options."),
    option("-V, --version", "Print the version."),
];

const LAYERS: [Explained; 12] = [
    Explained {
        form: "lowerdir=DIR[:DIR ...]",
        brief: "The directories that are only read. The first one is the topmost: what it has hides what has the same name in those after \
                it. Directories of the same path are merged.",
        more: "An overlay has at least one.",
    },
    option("lowerdir+=DIR", "One more of them, below those before it. A colon is part of the path."),
    option("upperdir=DIR", "The directory that takes every change. Without it nothing can be changed (`EROFS`)."),
    Explained {
        form: "workdir=DIR",
        brief: "A directory for the overlay alone, outside the upper directory and on its filesystem. Changes are prepared there. Without \
                it, a reserved name inside the upper directory is used.",
        more: "Name the same one at every mount: it remembers hard links and inode numbers. The reserved name is `.wh..wh.work`.",
    },
    Explained {
        form: "format=oci|kernel",
        brief: "How a new upper directory is written: as an OCI image layer, the default, or as the kernel's overlayfs writes it. `kernel` \
                needs a `workdir`.",
        more: "`mount -t overlay` can use an upper directory in the kernel's format too. One that is already written in a format stays in \
               it without this option, and is refused if the other format is named.",
    },
    option(
        "ro, rw",
        "`ro`: nothing can be changed, and the upper directory is read like a lower one. `rw` is the default.",
    ),
    Explained {
        form: "volatile",
        brief: "Nothing is synced to the disk before the unmount, also if a program asks for it. A mark stays in the work directory until \
                then: after a crash the upper directory is refused.",
        more: "This is faster, and right for what can be made again. The mark is the directory `work/incompat/volatile` in the work \
               directory, where the kernel's overlayfs has it too. If the program or the system ends without an unmount, the upper \
               directory may be damaged. A tree that has not been changed for ten seconds is synced too, and has no mark until its \
               next change.",
    },
    option("fsync=0|1", "`0` is another name for `volatile`. `1` is the default."),
    Explained {
        form: "reuse_volatile",
        brief: "Use the upper directory also if it has the mark of a crash, and remove the mark.",
        more: "The removal of the mark by hand has the same effect.",
    },
    Explained {
        form: "whole_copies",
        brief: "A file of a lower directory is copied whole before its first change. Without this option a large copy may lack unchanged \
                data until it is synced, linked or renamed, or the tree is unmounted.",
        more: "A file of 1 MiB or more counts as large. Until its copy is complete, the copy has a reserved name in the upper directory. \
               Use this option if other programs read the upper directory meanwhile.",
    },
    Explained {
        form: "userxattr",
        brief: "The layers are trusted: redirects and marks of metadata in them count, whoever may have made them. Without this option one \
                that a user could have made leads only to what that user may read.",
        more: "A user could have made what belongs to neither root nor the user who mounts, and what others may write. Attributes in the \
               namespace `trusted.` are root's and always count.",
    },
    Explained {
        form: "redirect_dir=on|off|follow",
        brief: "With `off`, a rename of a directory that lower directories have fails with `EXDEV`; mv then copies it. `follow` is the same \
                as `off`, `on` is the default.",
        more: "Use `off` if other programs read the upper directory, fuse-overlayfs or tools for images: they do not know with what a \
               renamed directory merges. Renames of earlier mounts are followed.",
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
        brief: "N user (group) ids of the layers from A on are shown as the ids from B on, all others as 65534.",
        more: "What is created or changed gets the id of the layer that belongs to the one shown. An object whose id is shown as 65534 \
               belongs to no user, as on a mount with mapped ids: not even root can change it, except to give it another owner. \
               Set-user-id and set-group-id bits show and work. They are written to a layer only for an id that is shown as itself. A \
               user whose id is not shown cannot create anything (`EOVERFLOW`), and nothing can be given to that user (`EINVAL`). With \
               the mapping of a user namespace as in `/proc/self/uid_map`, files show inside that namespace the owners that they have in \
               the layers.",
    },
    Explained {
        form: "squash_to_root",
        brief: "Everything is shown as belonging to user 0 and group 0.",
        more: "What is created belongs to its creator in the layer nevertheless.",
    },
    Explained {
        form: "squash_to_uid=ID, squash_to_gid=ID",
        brief: "Everything is shown as belonging to this user, or to this group.",
        more: "They come before `squash_to_root`. The user who is shown as the owner may change everything. Set-user-id and set-group-id \
               bits show, and are written, only where the owner or the group is the same in the layer. So a user can edit a tree of other \
               users, as far as the user who mounts may read it. The owners that cannot be given in the upper directory are recorded \
               there, in the attribute `user.containers.override_stat`, and later mounts show them from it; podman and \
               `fuse-overlayfs(1)` read it too. The owner of a symlink, socket or FIFO is lost.",
    },
    option("static_nlink", "Directories are shown with one link."),
    option("noacl", "There are no POSIX ACLs."),
];

const WORK: [Explained; 7] = [
    Explained {
        form: "timeout=SECONDS",
        brief: "How long the kernel believes what it is told of names and attributes. Without this option, without end.",
        more: "It may be a fraction. The default is right because only the mount changes its layers.",
    },
    Explained {
        form: "max_threads=N",
        brief: "How many requests are answered at once: two at least. Without this option two for each processor, from 4 to 16.",
        more: "Two are needed since one may have to wait for what another answers.",
    },
    option("threaded=0|1", "`0` is `max_threads=1`, `1` the default."),
    Explained {
        form: "writeback=0|1",
        brief: "Whether the kernel holds back what is written to files, to write it in larger pieces. `1` is the default.",
        more: "A write that cannot succeed, for want of space say, is refused all the same when it is made. Near the end of the space the \
               kernel asks before each write.",
    },
    Explained {
        form: "log=FILE",
        brief: "Append messages to this file. In the background they go there and not to syslog.",
        more: "Each begins with the seconds since 1970.",
    },
    option("debug", "As `--debug`."),
    Explained {
        form: "fsname=NAME",
        brief: "The source in /proc/mounts, as NAME on the command line.",
        more: "This option comes before the name on the command line.",
    },
];

const MOUNT: [Explained; 2] = [
    Explained {
        form: "remount",
        brief: "Change `ro`, `rw` and the flags below of what is mounted at MOUNTPOINT; all else stays as it is.",
        more: "What was mounted with `ro`, or without an upper directory, takes no changes after `rw` either (`EROFS`).",
    },
    Explained {
        form: "nosuid, suid, nodev, dev, noexec, exec, noatime, atime, nodiratime, diratime, relatime, norelatime, strictatime, \
               nostrictatime, lazytime, nolazytime, nosymfollow, symfollow, sync, async, dirsync",
        brief: "",
        more: "Of the options below, those about access times change nothing, since reading leaves access times alone. A mount through \
               `fusermount3(1)` always has `nosuid` and `nodev`, and of the others takes `noexec` and `noatime` only. All mean what \
               `mount(8)` says:",
    },
];

const WITHOUT_EFFECT: [Explained; 11] = [
    Explained {
        form: "auto, noauto, user, nouser, users, owner, group, nofail, defaults, comment, _netdev, helper, uhelper, private, x-..., X-...",
        brief: "",
        more: "For programs that read `fstab(5)`, whatever the value:",
    },
    Explained {
        form: "user_id, group_id, silent, loud, nomand, iversion, noiversion, context, fscontext, defcontext, rootcontext",
        brief: "",
        more: "Files have the security labels that the layers give them, or that of the filesystem type; the labels of the last four \
               options below are not passed on. For the kernel, which does not need these options here:",
    },
    Explained {
        form: "clone_fd, max_idle_threads, kernel_cache, big_writes, nonempty, splice_read, splice_write, splice_move, max_write, \
               fast_ino, fast_ino_check",
        brief: "",
        more: "Of fuse-overlayfs and other FUSE filesystems, whatever the value:",
    },
    option("door=engine", "Requests are calls of the overlay's engine. Other values are refused."),
    option("xino=off|auto|on", "Inode numbers are unique and stay the same, as with `on`."),
    option("index=off", "Hard links are kept without it. Other values are refused."),
    option("nfs_export=off", "The tree cannot be exported by NFS. Other values are refused."),
    option("uuid=auto|null|off", "The values of the kernel's overlayfs; none has an effect."),
    Explained {
        form: "metacopy=on|off",
        brief: "No copy has metadata alone once the tree is unmounted.",
        more: "Files that the kernel's overlayfs has copied up in that way are read.",
    },
    option("noxattrs=0", "There are extended attributes. `1` is refused."),
    option("xattr_permissions=2", "Owners that cannot be given are recorded, and only these."),
];
