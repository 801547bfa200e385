//! The daemon for Redox.

use super::{Explained, Group, Program, option};

/// `overlayfs`, the daemon.
pub const PROGRAM: Program = Program {
    name: "overlayfs",
    about: "read-only directories under one writable directory, as one merged tree",
    forms: &[
        "--lower DIR [--lower DIR ...] [--upper DIR] [--work DIR] [OPTION ...] NAME",
        "-o lowerdir=DIR[:DIR ...][,upperdir=DIR][,workdir=DIR] [OPTION ...] NAME",
        "status [--json|--metrics] [--watch] NAME",
        "sync NAME",
        "snapshot [--name SNAPSHOT] NAME",
        "rollback | snapshots NAME",
        "run [OPTION ...] [--] PROGRAM [ARGUMENT ...]",
    ],
    before: "Serves the merged tree as /scheme/NAME until SIGTERM or SIGINT ends it.",
    commands: &[
        ("status", "Tell what an overlay is, and what the program that serves it does."),
        ("sync", "Complete partial copies of an overlay, and sync all of its changes to the disk."),
        ("snapshot", "Freeze the upper directory of an overlay, and go on in a new one."),
        ("rollback", "Leave the changes since the last snapshot aside, and show the snapshot again."),
        ("snapshots", "List the snapshots of an overlay: number, time and name."),
        ("run", "Run a program with an overlay as its `/`."),
    ],
    groups: &[
        Group {
            title: "Layers",
            options: &[
                Explained {
                    form: "--lower DIR",
                    brief: "A directory that is only read. The first one is the topmost: its entries hide entries of \
                            the same name in later ones. Directories of the same path are merged.",
                    more: "An overlay has at least one lower directory.",
                },
                Explained {
                    form: "--upper DIR",
                    brief: "The directory that takes every change. Without it every change fails with `EROFS`.",
                    more: "Its filesystem must be able to rename. On Redox, redoxfs can and ramfs cannot.",
                },
                Explained {
                    form: "--work DIR",
                    brief: "A directory for the overlay alone, outside the upper directory and on its filesystem. The \
                            overlay prepares changes there. Without this option it uses a reserved name inside the \
                            upper directory.",
                    more: "Name the same directory at every mount: it stores hard links and inode numbers.",
                },
                Explained {
                    form: "--snapshots DIR",
                    brief: "A directory on the filesystem of the upper directory, for snapshots. After a snapshot the \
                            changes go to a new upper directory in it.",
                    more: "Name the same upper directory and the same DIR at every start. See the commands `snapshot` \
                           and `rollback`.",
                },
                option("--read-only", "Every change fails with `EROFS`. The upper directory is read like a lower one."),
                Explained {
                    form: "--volatile",
                    brief: "The overlay syncs nothing to the disk before its end, even if a program asks for it. A \
                            mark stays in the work directory until then. After a crash the upper directory is refused \
                            because of it.",
                    more: "The mark is the directory `work/incompat/volatile` in the work directory.",
                },
                option(
                    "--reuse-volatile",
                    "Use the upper directory even if it has the mark of a crash, and remove the mark.",
                ),
                Explained {
                    form: "--whole-copies",
                    brief: "Copy a lower file whole before its first change. Without this option a large copy may \
                            lack unchanged data. It becomes complete when it is synced, linked or renamed, or when \
                            the overlay ends.",
                    more: "A file of 1 MiB or more counts as large. Use this option if other programs read the upper \
                           directory during the mount.",
                },
                option(
                    "--trust-layers",
                    "Trust redirects and marks of metadata in the layers, whatever their owner. Without this option a \
                     mark that a user could have made leads only to objects that this user may read.",
                ),
                Explained {
                    form: "--no-redirects",
                    brief: "A rename of a lower directory fails with `EXDEV`. mv then copies it.",
                    more: "Use this option if other programs read the upper directory: they do not know the lower \
                           path of a renamed directory.",
                },
            ],
        },
        Group {
            title: "Service",
            options: &[
                Explained {
                    form: "--on-exit ENDING",
                    brief: "What happens to the changes when SIGTERM or SIGINT ends the daemon. `preserve` is the \
                            default: they stay. `discard` throws them away. `commit` merges them into the topmost \
                            lower directory, `commit-atomic` in one step.",
                    more: "The parent of the daemon does it, after the daemon has synced everything, and before it \
                           removes the name. After a crash of the daemon the changes stay. A failure is logged, and \
                           `overlayfs-layer` goes on.",
                },
                option("--replace", "Take the name even if a dead daemon has left it behind."),
                Explained {
                    form: "--detach",
                    brief: "Go into the background. The command returns when the tree can be used.",
                    more: "From then on messages go to /scheme/log/overlayfs, and the daemon keeps no descriptor of \
                           its caller open. A unit of init must not use this option.",
                },
                Explained {
                    form: "--hand-to-init",
                    brief: "Hand the scheme to init, which registers the name. Use it in a unit of type = { scheme = \
                            \"NAME\" }.",
                    more: "The two names must be the same: the paths that the daemon returns begin with its own.",
                },
                Explained {
                    form: "--unprotected-hardlinks",
                    brief: "A user that may write a directory may link any visible file into it. Without this option \
                            the user must own the file. Or the file must be regular, without set-id bits, and the \
                            user must be able to read and write it.",
                    more: "Otherwise the link fails with `EPERM`, as on Linux with `fs.protected_hardlinks`.",
                },
                option("-v, --verbose", "Log every request."),
                option("-h, --help", "Print a summary of the options."),
                option("-V, --version", "Print the version."),
                option(
                    "-o LIST",
                    "The layers as a list with commas, as below. The option may come more than once. A comma, colon \
                     or backslash in a path needs a backslash before it.",
                ),
            ],
        },
        Group {
            title: "Items of the list after -o",
            options: &[
                option("lowerdir=DIR[:DIR ...]", "As `--lower` for each of the directories."),
                option("lowerdir+=DIR", "As `--lower`. A colon is part of the path."),
                option("upperdir=DIR", "As `--upper`."),
                option("workdir=DIR", "As `--work`."),
                option("snapshots=DIR", "As `--snapshots`."),
                option("ro, rw", "`ro` is `--read-only`, `rw` is the opposite. The last one counts."),
                option("volatile", "As `--volatile`."),
                option("reuse_volatile", "As `--reuse-volatile`."),
                option("whole_copies", "As `--whole-copies`."),
                option("userxattr", "As `--trust-layers`."),
                option("redirect_dir=on|off|follow", "`off` and `follow` are `--no-redirects`. `on` is the default."),
                option("on_exit=preserve|discard|commit|commit-atomic", "As `--on-exit`."),
            ],
        },
        RUN,
        Group {
            title: "Options of status",
            options: &[
                option("--json", "Print an object for programs."),
                option("--metrics", "Print numbers in the text format of Prometheus."),
                option("--watch", "Print again every second, until the overlay ends."),
            ],
        },
        Group {
            title: "Options of snapshot",
            options: &[option("--name SNAPSHOT", "The name of the snapshot. Without it, its number is its name.")],
        },
    ],
    after: "",
};

/// The options of `run`.
pub const RUN: Group = Group {
    title: "Options of run",
    options: &[
        Explained {
            form: "--lower DIR",
            brief: "A directory that the program sees as its `/`. The first one is the topmost. Without it, that is \
                    the `/` of the system.",
            more: "The option may come more than once.",
        },
        Explained {
            form: "--upper DIR",
            brief: "Put the changes into DIR. If an earlier run made it, go on with its changes.",
            more: "Without this option a new directory is made in `$TMPDIR`, or in `/tmp`.",
        },
        Explained {
            form: "--scheme NAME",
            brief: "Let the program reach this scheme of the system too, such as `ram`. The option may come more than \
                    once.",
            more: "Without it the program reaches no disk and no other process. A program of root with `memory`, `sys` \
                   or `proc` can change the whole system.",
        },
        option(
            "--net, --no-net",
            "With `--net` the program reaches the network: `icmp`, `tcp` and `udp`. `--no-net` is the default.",
        ),
        option("--keep", "Keep the changes, and say where they are."),
        option("--discard", "Throw the changes away."),
        Explained {
            form: "--commit",
            brief: "Make the changes in the topmost lower directory.",
            more: "The commit needs a directory around the lower one, so `/` cannot have it.",
        },
        Explained {
            form: "--ask",
            brief: "Ask at the terminal what to do with the changes. This is the default. Without a terminal they are \
                    kept.",
            more: "",
        },
    ],
};
