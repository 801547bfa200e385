//! The daemon for Redox.

use super::{Explained, Group, Program, option};

pub const PROGRAM: Program = Program {
    name: "overlayfs",
    about: "read-only directories under one writable directory, as one merged tree",
    forms: &[
        "--lower DIR [--lower DIR ...] [--upper DIR] [--work DIR] [OPTION ...] NAME",
        "-o lowerdir=DIR[:DIR ...][,upperdir=DIR][,workdir=DIR] [OPTION ...] NAME",
    ],
    before: "Serves the merged tree as /scheme/NAME until a signal ends it (TERM, INT).",
    groups: &[
        Group {
            title: "Layers",
            options: &[
                Explained {
                    form: "--lower DIR",
                    brief: "A directory that is only read. The first one is the topmost: what it has hides what has the same name in \
                            those after it. Directories of the same path are merged.",
                    more: "An overlay has at least one.",
                },
                Explained {
                    form: "--upper DIR",
                    brief: "The directory that takes every change. Without it nothing can be changed (`EROFS`).",
                    more: "Its filesystem must be able to rename. On Redox, redoxfs can and ramfs cannot.",
                },
                Explained {
                    form: "--work DIR",
                    brief: "A directory for the overlay alone, outside the upper directory and on its filesystem. Changes are prepared \
                            there. Without it, a reserved name inside the upper directory is used.",
                    more: "Name the same one at every mount: it remembers hard links and inode numbers.",
                },
                option("--read-only", "Nothing can be changed. The upper directory is read like a lower one."),
                Explained {
                    form: "--volatile",
                    brief: "Nothing is synced to the disk before the end, also if a program asks for it. A mark stays in the work \
                            directory until the overlay ends well: after a crash the upper directory is refused.",
                    more: "The mark is the directory `work/incompat/volatile` in the work directory.",
                },
                option(
                    "--reuse-volatile",
                    "Use the upper directory also if it has the mark of a crash, and remove the mark.",
                ),
                Explained {
                    form: "--whole-copies",
                    brief: "A file of a lower directory is copied whole before its first change. Without this option a large copy may \
                            lack unchanged data until it is synced, linked or renamed, or the overlay ends.",
                    more: "A file of 1 MiB or more counts as large. Use this option if other programs read the upper directory meanwhile.",
                },
                option(
                    "--trust-layers",
                    "Redirects and marks of metadata in the layers count, whoever may have made them. Without this option one that a \
                     user could have made leads only to what that user may read.",
                ),
                Explained {
                    form: "--no-redirects",
                    brief: "A rename of a directory that lower directories have fails with `EXDEV`; mv then copies it.",
                    more: "Use this option if other programs read the upper directory: they do not know where a renamed directory \
                           came from.",
                },
            ],
        },
        Group {
            title: "Service",
            options: &[
                option("--replace", "Take the name also if a daemon that died has left it behind."),
                Explained {
                    form: "--detach",
                    brief: "Go into the background. The command returns when the tree can be used.",
                    more: "Messages go to /scheme/log/overlayfs from then on, and nothing of the caller's stays open. A unit of init must \
                           not use this option.",
                },
                Explained {
                    form: "--hand-to-init",
                    brief: "Hand the scheme to init, which registers the name: for a unit of type = { scheme = \"NAME\" }.",
                    more: "The two names must be the same: the daemon begins the paths that it tells with its own.",
                },
                Explained {
                    form: "--unprotected-hardlinks",
                    brief: "Whoever may write a directory may give any file that he sees a name there. Without this option that is for \
                            the file's owner, and for others if the file is regular, not set-id, and they may read and write it.",
                    more: "Others get EPERM, as on Linux with `fs.protected_hardlinks`.",
                },
                option("-v, --verbose", "Log every request."),
                option("-h, --help", "Print a summary of the options."),
                option("-V, --version", "Print the version."),
                option(
                    "-o LIST",
                    "The layers as a list with commas, as below. May be given more than once. A comma, colon or backslash in a path is \
                     written behind a backslash.",
                ),
            ],
        },
        Group {
            title: "In a list behind -o",
            options: &[
                option("lowerdir=DIR[:DIR ...]", "As `--lower` for each of the directories."),
                option("lowerdir+=DIR", "As `--lower`. A colon is part of the path."),
                option("upperdir=DIR", "As `--upper`."),
                option("workdir=DIR", "As `--work`."),
                option("ro, rw", "`ro` is `--read-only`, `rw` the opposite. The last one counts."),
                option("volatile", "As `--volatile`."),
                option("reuse_volatile", "As `--reuse-volatile`."),
                option("whole_copies", "As `--whole-copies`."),
                option("userxattr", "As `--trust-layers`."),
                option("redirect_dir=on|off|follow", "`off` and `follow` are `--no-redirects`. `on` is the default."),
            ],
        },
    ],
    after: "",
};
